package model

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestPooling(t *testing.T) {
	modules := func(further string) string {
		return `[{"idx":0,"path":"","type":"sentence_transformers.models.Transformer"},
			{"idx":1,"path":"pool/","type":"sentence_transformers.models.Pooling"}` + further + `]`
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  string
		bad   bool
	}{
		"nothing":            {nil, "", false},
		"mean":               {map[string]string{"1_Pooling/config.json": `{"pooling_mode_cls_token":false,"pooling_mode_mean_tokens":true,"pooling_mode_max_tokens":false}`}, "mean", false},
		"cls, by its module": {map[string]string{"pool/config.json": `{"pooling_mode_cls_token":true}`, "modules.json": modules("")}, "cls", false},
		"last":               {map[string]string{"1_Pooling/config.json": `{"pooling_mode_lasttoken":true,"include_prompt":true}`}, "last", false},
		"newer files":        {map[string]string{"1_Pooling/config.json": `{"pooling_mode":"lasttoken"}`}, "last", false},
		"max":                {map[string]string{"1_Pooling/config.json": `{"pooling_mode_max_tokens":true}`}, "max_tokens", false},
		"two side by side":   {map[string]string{"1_Pooling/config.json": `{"pooling_mode_mean_tokens":true,"pooling_mode_cls_token":true}`}, "cls+mean", false},
		"normalized":         {map[string]string{"pool/config.json": `{"pooling_mode_mean_tokens":true}`, "modules.json": modules(`,{"type":"sentence_transformers.models.Normalize"}`)}, "mean", false},
		"dense":              {map[string]string{"pool/config.json": `{"pooling_mode_mean_tokens":true}`, "modules.json": modules(`,{"path":"2_Dense","type":"sentence_transformers.models.Dense"}`)}, "mean+Dense", false},
		"no object":          {map[string]string{"1_Pooling/config.json": `[]`}, "", true},
		"elsewhere":          {map[string]string{"modules.json": `[{"path":"../x","type":"Pooling"}]`}, "", true},
	} {
		dir := t.TempDir()
		for file, text := range c.files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := pooling(dir)
		if got != c.want || (err != nil) != c.bad || c.bad && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
	for want, fields := range map[string]map[string]any{
		"":       {"bert.pooling_type": "mean"},
		"cls":    {"bert.pooling_type": uint32(2)},
		"type 9": {"bert.pooling_type": uint32(9)},
	} {
		if got := poolingOfGGUF("bert", fields); got != want {
			t.Errorf("%v: %q, want %q", fields, got, want)
		}
	}
}
