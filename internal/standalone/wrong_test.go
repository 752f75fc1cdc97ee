package standalone

import (
	"strings"
	"testing"
	"time"
)

func TestWrong(t *testing.T) {
	for spec, says := range map[string]string{
		"autoscaling: {min: 0, max: 1, idleAfter: 5}":    "field spec.autoscaling.idleAfter is 5: write a duration, as in 5m",
		"autoscaling: {min: 0, max: 1, idleAfter: soon}": `field spec.autoscaling.idleAfter is "soon": write a duration, as in 5m`,
		"replicas: .nan":                 "a value is .nan or .inf: no field takes such numbers",
		"replicas: 99999999999999999999": "field spec.replicas is 100000000000000000000: write a whole number between -2147483648 and 2147483647",
		"replicas: many":                 `field spec.replicas is "many": write a whole number`,
		"replicas: 1.5":                  "field spec.replicas is 1.5: write a whole number",
		"suspend: 1":                     "field spec.suspend is 1: write true or false",
		"servedNames: a":                 `field spec.servedNames is "a": write a list`,
		"servedNames: [a, 1]":            "field spec.servedNames[1] is 1: write a text; quote it",
		"context: 5":                     "field spec.context is 5: write fields",
		"sorce: {uri: 'file:///a'}":      `unknown field "sorce" in spec: did you mean source?`,
		"source: {url: 'file:///a'}":     `unknown field "url" in spec.source: did you mean uri?`,
		"source: {uri: 'file:///a'}, completelyOther: true": `unknown field "completelyOther" in spec: there are `,
		"poolSelector: {matchLabels: {a: 1}}":               "field spec.poolSelector.matchLabels.a is 1: write a text",
	} {
		text := "apiVersion: estiba.dev/v1alpha1\nkind: Model\nmetadata: {name: m}\nspec: {" + spec + "}\n"
		if _, err := Parse([]byte(text), "f", "default", time.Time{}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", spec, err, says)
		}
	}
	pool := "apiVersion: estiba.dev/v1alpha1\nkind: InferencePool\nmetadata: {name: p}\nspec: {workers: {max: 1}, device: {memory: 1Zi}}\n"
	if _, err := Parse([]byte(pool), "f", "default", time.Time{}); err == nil || !strings.Contains(err.Error(), "field spec.device.memory is \"1Zi\": write a size, as in 14Gi") {
		t.Error(err)
	}
	top := "apiVersion: estiba.dev/v1alpha1\nkind: Model\nmetadata: {name: p}\nspek: {}\n"
	if _, err := Parse([]byte(top), "f", "default", time.Time{}); err == nil || !strings.Contains(err.Error(), "unknown field \"spek\": did you mean spec?") {
		t.Error(err)
	}
}
