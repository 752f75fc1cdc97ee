package controllers

import (
	"reflect"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fixture"
)

// Each field of a status counts, whatever fields there will be.
func TestSameModelStatus(t *testing.T) {
	fill := func() v1alpha1.ModelStatus {
		var s v1alpha1.ModelStatus
		leaves(reflect.ValueOf(&s).Elem(), "", func(string, func()) {})
		return s
	}
	a, b := fill(), fill()
	b.Placements[0].Since = metav1.NewTime(b.Placements[0].Since.In(time.FixedZone("elsewhere", 3600)))
	b.Footprints[0].Weights = resource.MustParse(b.Footprints[0].Weights.String()) // as it comes back
	if !sameModelStatus(&a, &b) || !equality.Semantic.DeepEqual(a, b) {
		t.Error("the same status is another one")
	}
	var names []string
	leaves(reflect.ValueOf(&a).Elem(), "status", func(name string, _ func()) { names = append(names, name) })
	if len(names) < 30 {
		t.Errorf("only %d fields are looked at: %v", len(names), names)
	}
	for i := range names {
		changed, n := fill(), 0
		leaves(reflect.ValueOf(&changed).Elem(), "status", func(_ string, change func()) {
			if n == i {
				change()
			}
			n++
		})
		if sameModelStatus(&a, &changed) {
			t.Errorf("a change of %s is not seen", names[i])
		}
	}
	empty := v1alpha1.ModelStatus{}
	if sameModelStatus(&a, &empty) || !sameModelStatus(&empty, &v1alpha1.ModelStatus{ServedNames: []string{}}) {
		t.Error("what is empty is not told from what is not")
	}
}

// leaves fills everything below v that is empty, one element to a list, and
// gives each value that has no parts with a function that changes it.
func leaves(v reflect.Value, name string, each func(name string, change func())) {
	switch at := v.Addr().Interface().(type) {
	case *metav1.Time:
		if at.IsZero() {
			*at = metav1.NewTime(fixture.Epoch)
		}
		each(name, func() { *at = metav1.NewTime(at.Add(time.Second)) })
		return
	case *resource.Quantity:
		if at.IsZero() {
			*at = *resource.NewQuantity(1<<30, resource.BinarySI)
		}
		each(name, func() { at.Add(*resource.NewQuantity(1, resource.BinarySI)) })
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			leaves(v.Field(i), name+"."+v.Type().Field(i).Name, each)
		}
	case reflect.Slice:
		if v.Len() == 0 {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		}
		leaves(v.Index(0), name+"[0]", each)
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		leaves(v.Elem(), name, each)
	case reflect.String:
		each(name, func() { v.SetString(v.String() + "x") })
	case reflect.Bool:
		each(name, func() { v.SetBool(!v.Bool()) })
	case reflect.Int32, reflect.Int64:
		each(name, func() { v.SetInt(v.Int() + 1) })
	default:
		panic("leaves: no way to fill a " + v.Kind().String() + " at " + name)
	}
}
