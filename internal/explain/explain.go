// Package explain tells why a model is where it is, or nowhere, what a pool
// holds, and where a model would land. It asks for the operator's latest
// decision and has controllers.Explain run it again. Start with Model.
package explain

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/history"
	"github.com/estiba/estiba/internal/kubeconfig"
)

// Options say whom to ask, and how to tell it.
type Options struct {
	history.Options        // of the operator, or an estiba serve
	Namespace       string // of what is explained; empty: the kubeconfig's, or "default"
	JSON            bool
	Needs           int64 // bytes of the model on a device, for Manifest; 0: ask the workers
}

// Model explains the Model of a name, which may be "namespace/name".
func Model(ctx context.Context, w io.Writer, name string, o Options) error {
	s, err := history.Latest(ctx, o.Options)
	if err != nil {
		return err
	}
	e := controllers.Explain(s.Seen, o.key(name))
	if e.Reason == controllers.ReasonNotFound {
		return said(e.Answer)
	}
	return o.tell(w, e)
}

// Pool explains the InferencePool of a name.
func Pool(ctx context.Context, w io.Writer, name string, o Options) error {
	s, err := history.Latest(ctx, o.Options)
	if err != nil {
		return err
	}
	all := controllers.StowageOf(s.Seen)
	key := o.key(name)
	at := slices.IndexFunc(all, func(p controllers.Stowage) bool { return p.Pool == key })
	if at < 0 {
		var names []string
		for _, p := range all {
			names = append(names, p.Pool)
		}
		if len(names) == 0 {
			return fmt.Errorf("there is no InferencePool %s, nor any other", key)
		}
		return fmt.Errorf("there is no InferencePool %s: there are %s", key, strings.Join(names, ", "))
	}
	if o.JSON {
		return json.NewEncoder(w).Encode(all[at])
	}
	_, err = io.WriteString(w, all[at].Text())
	return err
}

func (o Options) tell(w io.Writer, e controllers.Explanation) error {
	if o.JSON {
		return json.NewEncoder(w).Encode(e)
	}
	_, err := io.WriteString(w, e.Text(o.Server == ""))
	return err
}

// said makes an error of a sentence: it goes on after a colon.
func said(sentence string) error {
	first, n := utf8.DecodeRuneInString(sentence)
	return errors.New(string(unicode.ToLower(first)) + strings.TrimSuffix(sentence[n:], "."))
}

// key is "namespace/name" of a name.
func (o Options) key(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return o.namespace() + "/" + name
}

func (o Options) namespace() string {
	if o.Namespace != "" || o.Server != "" {
		return cmp.Or(o.Namespace, "default")
	}
	return cmp.Or(kubeconfig.Namespace(), "default")
}
