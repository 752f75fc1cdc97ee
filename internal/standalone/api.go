package standalone

import (
	"encoding/json"
	"net/http"

	"github.com/estiba/estiba/api/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// readOnly serves Models and InferencePools with their statuses under the
// paths that an API server has for them, so that the same tools read both.
func (s *Server) readOnly(mux *http.ServeMux) {
	base := "GET /apis/" + v1alpha1.GroupVersion.String()
	for _, path := range []string{"", "/namespaces/{namespace}"} {
		mux.HandleFunc(base+path+"/models", func(w http.ResponseWriter, r *http.Request) {
			list := v1alpha1.ModelList{TypeMeta: typeMeta("ModelList"), Items: []v1alpha1.Model{}}
			objects := s.objects()
			for _, m := range objects.Models {
				if wanted(r, m.Namespace) {
					m.TypeMeta = typeMeta("Model")
					list.Items = append(list.Items, m)
				}
			}
			answer(w, list)
		})
		mux.HandleFunc(base+path+"/inferencepools", func(w http.ResponseWriter, r *http.Request) {
			list := v1alpha1.InferencePoolList{TypeMeta: typeMeta("InferencePoolList"), Items: []v1alpha1.InferencePool{}}
			for _, p := range s.objects().Pools {
				if wanted(r, p.Namespace) {
					p.TypeMeta = typeMeta("InferencePool")
					list.Items = append(list.Items, p)
				}
			}
			answer(w, list)
		})
	}
}

func typeMeta(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: kind}
}

func wanted(r *http.Request, namespace string) bool {
	n := r.PathValue("namespace")
	return n == "" || n == namespace
}

func answer(w http.ResponseWriter, list any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list) // a client that went away is no error of ours
}
