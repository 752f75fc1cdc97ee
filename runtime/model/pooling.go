package model

import (
	"encoding/json"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/estiba/estiba/runtime/weights"
)

// pooling says how a folder's embeddings are made of the hidden states of a text's tokens, by the
// files of sentence-transformers: "mean", "cls" or "last", or a name of what cannot
// be done here, such as "max" or "mean+Dense". Empty if it does not say.
func pooling(dir string) (string, error) {
	folder, further := "1_Pooling", ""
	text, err := optional(dir, "modules.json", maxConfig)
	if err != nil {
		return "", err
	}
	if text != nil {
		var modules []struct {
			Path string `json:"path"`
			Type string `json:"type"`
		}
		if err := json.Unmarshal(text, &modules); err != nil {
			return "", fmt.Errorf("read %s: %w: %w", filepath.Join(dir, "modules.json"), ErrInvalid, weights.JSONError(err))
		}
		for _, m := range modules {
			switch kind := m.Type[strings.LastIndexByte(m.Type, '.')+1:]; kind {
			case "Transformer", "Normalize": // an embedding has length 1 here anyway
			case "Pooling":
				if folder = path.Clean(m.Path); !filepath.IsLocal(folder) {
					return "", fmt.Errorf("read %s: %w: path %q leads out of the folder", filepath.Join(dir, "modules.json"), ErrInvalid, m.Path)
				}
			default:
				further += "+" + kind
			}
		}
	}
	name := path.Join(folder, "config.json")
	if text, err = optional(dir, name, maxConfig); err != nil || text == nil {
		return strings.TrimPrefix(further, "+"), err
	}
	mode, err := poolingMode(text)
	if err != nil {
		return "", fmt.Errorf("read %s: %w: %w", filepath.Join(dir, name), ErrInvalid, err)
	}
	return mode + further, nil
}

// poolingMode reads a configuration that has either one name, or a field for
// each mode; several at once are put side by side, which cannot be done here.
func poolingMode(text []byte) (string, error) {
	var config map[string]json.RawMessage
	if err := json.Unmarshal(text, &config); err != nil {
		return "", weights.JSONError(err)
	}
	short := map[string]string{"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}
	var modes []string
	for field, value := range config {
		mode, ok := strings.CutPrefix(field, "pooling_mode_")
		if !ok || string(value) != "true" {
			continue
		}
		if known := short[mode]; known != "" {
			mode = known
		}
		modes = append(modes, mode)
	}
	if raw, ok := config["pooling_mode"]; ok {
		var mode string
		if err := json.Unmarshal(raw, &mode); err != nil {
			return "", fmt.Errorf("pooling_mode: %w", weights.JSONError(err))
		}
		if mode == "lasttoken" {
			mode = "last"
		}
		modes = []string{mode}
	}
	slices.Sort(modes)
	return strings.Join(modes, "+"), nil
}

// poolingTypes are llama.cpp's, in its order.
var poolingTypes = []string{"", "mean", "cls", "last", "rank"}

// poolingOfGGUF is pooling of a GGUF file's fields.
func poolingOfGGUF(architecture string, fields map[string]any) string {
	n, ok := fields[architecture+".pooling_type"].(uint32)
	switch {
	case !ok:
		return ""
	case int64(n) >= int64(len(poolingTypes)):
		return fmt.Sprintf("type %d", n)
	}
	return poolingTypes[n]
}

// DefaultPooling is the checkpoint's own, or what is usual for its kind.
func (h Header) DefaultPooling() string {
	switch {
	case h.Pooling != "":
		return h.Pooling
	case h.Config.Encoder:
		return "mean"
	}
	return "last"
}
