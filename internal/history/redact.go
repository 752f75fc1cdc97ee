package history

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/controllers"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// salt makes what stands in the place of a secret another one in each process:
// nobody can find a short secret by trying.
var salt = []byte(rand.Text())

// bare is an object's metadata without what no decision reads.
func bare(o metav1.ObjectMeta) metav1.ObjectMeta {
	o.ManagedFields = nil
	if len(o.Annotations) > 0 { // one of kubectl's has the whole spec
		o.Annotations = maps.Clone(o.Annotations)
		maps.DeleteFunc(o.Annotations, func(name, _ string) bool { return !strings.HasPrefix(name, "estiba.dev/") })
	}
	return o
}

// withoutTemplate is p without its pods' template: its hash is all that a
// decision reads, and its environment may hold anything.
func withoutTemplate(p controllers.Pool) controllers.Pool {
	p.ObjectMeta = bare(p.ObjectMeta)
	p.Spec.Template = nil
	return p
}

func withoutExtras(m v1alpha1.Model) v1alpha1.Model {
	m.ObjectMeta = bare(m.ObjectMeta)
	return m
}

// redactor replaces, in JSON text, the secrets of sources' addresses, and the
// revisions that follow from them: what is decided on the text is what was
// decided, with other names. nil changes nothing.
type redactor struct{ pairs [][2][]byte }

// redacting is the redactor of all that stands in JSON that names these Models.
func redacting(models []v1alpha1.Model) *redactor {
	secrets := map[string]string{}
	for i := range models {
		for _, secret := range secretsOf(models[i].Spec.Source.URI) {
			secrets[secret] = standIn(secret)
		}
	}
	if len(secrets) == 0 {
		return nil
	}
	all := &redactor{}
	for secret, instead := range secrets {
		all.pairs = append(all.pairs, [2][]byte{inJSON(secret), inJSON(instead)})
	}
	// The longest first: one may be a part of another.
	slices.SortFunc(all.pairs, func(a, b [2][]byte) int { return len(b[0]) - len(a[0]) })
	revisions := map[string]string{}
	for i := range models {
		if len(secretsOf(models[i].Spec.Source.URI)) == 0 {
			continue
		}
		m := v1alpha1.Model{Spec: models[i].Spec}
		old := controllers.Revision(&m)
		m.Spec.Source.URI = all.plain(m.Spec.Source.URI)
		revisions[old] = controllers.Revision(&m)
	}
	for old, instead := range revisions {
		all.pairs = append(all.pairs, [2][]byte{[]byte(old), []byte(instead)})
	}
	return all
}

// secretsOf an address are what tells its user apart: name and password, and the query, which may be signed.
func secretsOf(address string) (secrets []string) {
	u, err := url.Parse(address)
	if err != nil { // no worker reads it; what it is, is not known either
		return []string{address}
	}
	if u.User != nil {
		_, rest, _ := strings.Cut(address, "://")
		if user, _, ok := strings.Cut(rest, "@"); ok {
			secrets = append(secrets, user)
		}
	}
	if u.RawQuery != "" {
		secrets = append(secrets, u.RawQuery)
	}
	return secrets
}

func standIn(secret string) string {
	mac := hmac.New(sha256.New, salt)
	mac.Write([]byte(secret))
	return "redacted-" + hex.EncodeToString(mac.Sum(nil)[:6])
}

// inJSON is s as encoding/json writes it, without the quotes.
func inJSON(s string) []byte {
	text, _ := json.Marshal(s) // of a string it never fails
	return text[1 : len(text)-1]
}

func (r *redactor) plain(s string) string {
	text := r.text(inJSON(s))
	var out string
	if json.Unmarshal(slices.Concat([]byte(`"`), text, []byte(`"`)), &out) != nil {
		return "redacted"
	}
	return out
}

// text is JSON without the secrets.
func (r *redactor) text(b []byte) []byte {
	if r == nil {
		return b
	}
	for _, p := range r.pairs {
		b = bytes.ReplaceAll(b, p[0], p[1])
	}
	return b
}
