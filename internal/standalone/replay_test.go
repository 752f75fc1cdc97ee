package standalone

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/history"
	"github.com/estiba/estiba/internal/simulate"
)

// TestReplay: what was decided by the clock of this machine comes out the same from the history, which keeps no monotonic clock.
func TestReplay(t *testing.T) {
	folder := t.TempDir()
	for i := range 5 {
		name := fmt.Sprintf("stories-%d", i)
		write(t, filepath.Join(folder, name+".yaml"), fmt.Sprintf(model, name, fixture.Model("stories260K/hf-f32"))+"  autoscaling: {min: 0, max: 1}\n")
	}
	url := serve(t, folder, 8<<20)
	eventually(t, "ready", func() error { return get(url+"/readyz", nil) })
	for i := range 5 {
		complete(t, url, fmt.Sprintf("stories-%d", i), 10)
		time.Sleep(200 * time.Millisecond)
	}
	time.Sleep(time.Second)
	var out bytes.Buffer
	if err := simulate.Replay(t.Context(), &out, io.Discard, simulate.ReplayOptions{From: history.Options{Server: url}, Policies: []string{simulate.Own}, JSON: true}); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	var r simulate.ReplayReport
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Check.Decisions < 10 {
		t.Errorf("%d decisions, want 10 or more: %v", r.Check.Decisions, err)
	}
}
