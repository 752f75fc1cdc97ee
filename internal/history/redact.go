package history

import (
	"cmp"
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
type redactor struct{ in *strings.Replacer }

// redacting is the redactor of all that stands in JSON that names these Models.
func redacting(models []v1alpha1.Model) *redactor {
	secrets := map[string]string{}
	var secretive []*v1alpha1.Model
	for i := range models {
		found := secretsOf(models[i].Spec.Source.URI)
		for _, secret := range found {
			secrets[secret] = standIn(secret)
		}
		if len(found) > 0 {
			secretive = append(secretive, &models[i])
		}
	}
	if len(secrets) == 0 {
		return nil
	}
	var pairs []string
	// The longest first: one may begin as another does.
	for _, secret := range slices.SortedFunc(maps.Keys(secrets), func(a, b string) int { return cmp.Or(len(b)-len(a), cmp.Compare(a, b)) }) {
		pairs = append(pairs, inJSON(secret), secrets[secret])
		if inJSON(secret) != secret {
			pairs = append(pairs, secret, secrets[secret])
		}
	}
	addresses := strings.NewReplacer(pairs...)
	for _, m := range secretive {
		bare := v1alpha1.Model{Spec: m.Spec}
		bare.Spec.Source.URI = addresses.Replace(m.Spec.Source.URI)
		pairs = append(pairs, controllers.Revision(m), controllers.Revision(&bare))
	}
	return &redactor{strings.NewReplacer(pairs...)}
}

// secretsOf an address are what tells its user apart: name and password, and the query, which may be signed.
func secretsOf(address string) (secrets []string) {
	if !strings.ContainsAny(address, "@?") {
		return nil
	}
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
func inJSON(s string) string {
	text, _ := json.Marshal(s) // of a string it never fails
	return string(text[1 : len(text)-1])
}

// text is JSON without the secrets.
func (r *redactor) text(b []byte) []byte {
	if r == nil {
		return b
	}
	return []byte(r.in.Replace(string(b)))
}

// name is the name of a part, which may have a revision in it.
func (r *redactor) name(s string) string {
	if r == nil {
		return s
	}
	return r.in.Replace(s)
}
