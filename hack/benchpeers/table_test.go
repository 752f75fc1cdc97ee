package main

import (
	"strings"
	"testing"
)

func TestPlace(t *testing.T) {
	text, err := place("# a\n\n"+more+"\nrest\n", "cpu x speed", "one\n")
	if err != nil {
		t.Fatal(err)
	}
	text, err = place(text, "cpu x start", "two")
	if err != nil {
		t.Fatal(err)
	}
	text, err = place(text, "cpu x speed", "three")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "one") || strings.Index(text, "three") > strings.Index(text, "two") || !strings.HasSuffix(text, more+"\nrest\n") || strings.Count(text, "end of") != 2 {
		t.Error(text)
	}
	if _, err := place("# a\n", "x", "y"); err == nil {
		t.Error("placed nowhere")
	}
}

func TestTable(t *testing.T) {
	a := []sample{{Others: 0.1, Figures: figures{"decode": 30}}, {Others: 0.3, Figures: figures{"decode": 33}}, {Figures: figures{"decode": 31}}}
	l := []sample{{Figures: figures{"decode": 15}}, {Figures: figures{"decode": 11}}, {Figures: figures{"decode": 31}}}
	for got, want := range map[string]string{
		spread(values(a, "decode")): "31.0 (30.0..33.0)",
		spread([]float64{1.5}):      "1.50",
		ratio(a, l, "decode"):       "2.00 (1.00..3.00)",
		percent([]float64{0.5, 1}):  "75 %",
		digits(most(a, l)):          "0.30",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestParse(t *testing.T) {
	s := &session{root: "/nowhere"}
	m := subject{name: "m", bytes: 1 << 30}
	for _, c := range []struct {
		action action
		out    string
		want   string
	}{
		{s.llamaBench(m, 2, "", 512, 64), `{"n_prompt": 512, "n_gen": 0, "samples_ts": [1, 3]}` + "\n" + `{"n_prompt": 0, "n_gen": 64, "samples_ts": [5]}`, "decode 5, prompt 2, threads 2"},
		{s.llamaBatch(m, 2, 64, batchSizes), "\n" + `{"pl": 1, "speed_tg": 7}` + "\n\n" + `{"pl": 8, "speed_tg": 9}`, "batch 1 7, batch 8 9"},
		{s.estibaBench(m, 2, ""), `{"prefill_tokens_per_second": 1, "decode_tokens_per_second": 2, "bytes_per_token": 3, "read_bytes_per_second": 4, "threads": 2, "batch": [{"size": 2, "tokens_per_second": 5}]}`,
			"batch 2 5, bytes 3, decode 2, prompt 1, roof 4, threads 2"},
	} {
		_, parse := c.action.command(t.Context())
		got, err := parse([]byte(c.out))
		if err != nil || got.String() != c.want {
			t.Errorf("%v, %v, want %s", got, err, c.want)
		}
		if _, err := parse([]byte("failed")); err == nil {
			t.Error("no figures in no figures")
		}
	}
}
