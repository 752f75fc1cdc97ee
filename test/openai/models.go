// Package openai has what the official OpenAI clients ask in tests: the models, as files and
// manifests. Its own test serves them with estiba serve; test/kubernetes, in a cluster.
package openai

import (
	_ "embed"
	"path/filepath"
	"testing"

	"github.com/estiba/estiba/internal/fixture"
)

// Models are the Models' manifests, with PATH for the folder that Write has filled.
const Models = `apiVersion: estiba.dev/v1alpha1
kind: Model
metadata: {name: stories}
spec: {source: {uri: "file://PATH/hf-f32"}, context: {maxTokens: 512, sequences: 4}}
---
apiVersion: estiba.dev/v1alpha1
kind: Model
metadata: {name: tools}
spec: {source: {uri: "file://PATH/tools/hf-f32"}, context: {maxTokens: 512, sequences: 2}}
---
apiVersion: estiba.dev/v1alpha1
kind: Model
metadata: {name: busy}
spec: {source: {uri: "file://PATH/hf-f32"}, context: {maxTokens: 512, sequences: 1}}
---
apiVersion: estiba.dev/v1alpha1
kind: Model
metadata: {name: encoder}
spec: {source: {uri: "file://PATH/encoder"}}
---
apiVersion: estiba.dev/v1alpha1
kind: Model
metadata: {name: asleep}
spec: {source: {uri: "file://PATH/hf-f32"}, context: {maxTokens: 512, sequences: 1}, autoscaling: {min: 0, max: 1, idleAfter: 1m}}
---
apiVersion: estiba.dev/v1alpha1
kind: Model
metadata: {name: suspended}
spec: {source: {uri: "file://PATH/hf-f32"}, suspend: true}
`

//go:embed chat_template.jinja
var template []byte

// Write fills a folder with the files of Models: the bundled tiny model, the same with a template that
// knows tools, and an encoder.
func Write(t testing.TB, dir string) {
	t.Helper()
	fixture.CopyModel(t, "stories260K/hf-f32", dir)
	tools := fixture.CopyModel(t, "stories260K/hf-f32", filepath.Join(dir, "tools"))
	fixture.WriteFile(t, filepath.Join(tools, "chat_template.jinja"), template)
	fixture.Encoder(t, filepath.Join(dir, "encoder"))
}
