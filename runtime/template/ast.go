package template

// expr is an expression.
type expr interface{ eval(x *state) value }

// Expressions.
type (
	constant struct{ v value }
	variable struct {
		name string
		ref  ref
	}
	// ref is where a variable is: so many frames out, in that slot.
	ref struct{ depth, slot int }

	sequence struct { // a list or a tuple
		items []expr
		tuple bool
	}
	mapping struct{ keys, values []expr }

	conditional struct {
		test, then expr
		otherwise  expr // or nil
		line       int
	}
	logic struct { // "and", "or"
		or          bool
		left, right expr
	}
	negation   struct{ of expr }
	comparison struct {
		first expr
		ops   []string
		rest  []expr
	}
	binary struct {
		op          string
		left, right expr
	}
	unary struct {
		op string
		of expr
	}
	concatenation struct{ parts []expr }
	attribute     struct {
		of   expr
		name string
	}
	subscript struct{ of, at expr }
	slicing   struct{ of, start, stop, step expr } // bounds may be nil
	arguments struct {
		pos      []expr
		names    []string
		values   []expr // of names
		rest     expr   // *rest, or nil
		keywords expr   // **keywords, or nil
	}
	call struct {
		of   expr
		args arguments
		line int
	}
	filtering struct {
		of   expr // nil: what the block that has the filter has written
		name string
		args arguments
		line int
	}
	question struct {
		of   expr
		name string
		args arguments
		line int
	}
)

// stmt is a statement. It says how the loop around it goes on.
type stmt interface{ exec(x *state) flow }

type flow int

const (
	onward flow = iota
	breaking
	continuing
)

// Statements. A frame says what variables the statements inside have.
type (
	output struct {
		items []expr
		lines []int
	}
	assign struct {
		to   target
		from expr
		line int
	}
	assignBlock struct {
		to     target
		filter *filtering // or nil
		body   []stmt
		frame  *frameShape
		line   int
	}
	forLoop struct {
		to, testTo       target // the test has variables of its own
		in               expr
		test             expr // or nil
		recursive        bool
		body, otherwise  []stmt
		frame, testFrame *frameShape
		elseFrame        *frameShape
		loopSlot         int // -1: "loop" is not used
		line             int
	}
	branch struct {
		tests     []expr
		bodies    [][]stmt
		lines     []int
		otherwise []stmt
	}
	macroDef struct {
		name                    string
		params                  []string
		slots                   []int  // of the parameters
		defaults                []expr // of the last parameters
		caller, kwargs, varargs int    // slots, -1 where not used
		body                    []stmt
		frame                   *frameShape
		to                      ref // of the macro itself
		export                  bool
		line                    int
	}
	callBlock struct {
		def  *macroDef
		call *call
		line int
	}
	filterBlock struct {
		filter *filtering
		body   []stmt
		frame  *frameShape
		line   int
	}
	with struct {
		to    []target
		from  []expr
		body  []stmt
		frame *frameShape
		line  int
	}
	// region runs its body in a frame of its own: a block, or what an assistant generates.
	region struct {
		body     []stmt
		frame    *frameShape
		isolated bool // sees only what is set at the top
	}
	jump struct{ to flow }
	// foreign needs a loader of templates, which there is none of.
	foreign struct {
		tag  string
		line int
	}
)

// target is what is assigned to: a *variable, an *attributeTarget, or a *tupleTarget.
type target interface{ isTarget() }

type (
	variableTarget struct {
		name   string
		ref    ref
		export bool // blocks see it
	}
	attributeTarget struct { // of a namespace
		of   *variable
		name string
	}
	tupleTarget struct{ items []target }
)

func (*variableTarget) isTarget()  {}
func (*attributeTarget) isTarget() {}
func (*tupleTarget) isTarget()     {}

// walk calls visit with e and what is within it; not with what is within an
// expression for which visit is false.
func walk(e expr, visit func(expr) bool) {
	if e == nil || !visit(e) {
		return
	}
	all := func(list ...expr) {
		for _, e := range list {
			walk(e, visit)
		}
	}
	args := func(a arguments) {
		all(a.pos...)
		all(a.values...)
		all(a.rest, a.keywords)
	}
	switch e := e.(type) {
	case *sequence:
		all(e.items...)
	case *mapping:
		all(e.keys...)
		all(e.values...)
	case *conditional:
		all(e.test, e.then, e.otherwise)
	case *logic:
		all(e.left, e.right)
	case *negation:
		all(e.of)
	case *comparison:
		all(e.first)
		all(e.rest...)
	case *binary:
		all(e.left, e.right)
	case *unary:
		all(e.of)
	case *concatenation:
		all(e.parts...)
	case *attribute:
		all(e.of)
	case *subscript:
		all(e.of, e.at)
	case *slicing:
		all(e.of, e.start, e.stop, e.step)
	case *call:
		all(e.of)
		args(e.args)
	case *filtering:
		all(e.of)
		args(e.args)
	case *question:
		all(e.of)
		args(e.args)
	}
}

// names gives each variable that e reads to f.
func names(e expr, f func(*variable)) {
	walk(e, func(e expr) bool {
		if v, ok := e.(*variable); ok {
			f(v)
		}
		return true
	})
}
