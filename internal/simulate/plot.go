package simulate

import (
	"fmt"
	"html"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/estiba/estiba/internal/file"
)

// chart is a plot of lines over one another.
type chart struct {
	title, x, y string
	lines       []line
}

type line struct {
	name   string
	points []point // x ascending
}

type point struct{ x, y float64 }

func (l line) last() float64 {
	if len(l.points) == 0 {
		return 0
	}
	return l.points[len(l.points)-1].y
}

// palette by Okabe and Ito, which people with any colour vision tell apart; dashes tell again.
var palette = []string{"#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"}
var dashes = []string{"", "", "", "", "6 3", "6 3", "6 3", "2 3"}

// Size of the picture and of its frame, in pixels.
const (
	width, height                        = 900, 480
	left, right, top, bottom     float64 = 64, 650, 44, 420
	mostPoints                           = 1000 // of a line
	legendX, legendY, legendStep         = 664, 60, 20
)

// draw writes the chart. Lines are in the legend in their order, with their last value.
func (c chart) draw(b *strings.Builder) {
	xs, ys := c.scale(func(p point) float64 { return p.x }), c.scale(func(p point) float64 { return p.y })
	x := func(v float64) float64 { return left + (v-xs.from)/(xs.to-xs.from)*(right-left) }
	y := func(v float64) float64 { return bottom - (v-ys.from)/(ys.to-ys.from)*(bottom-top) }
	fmt.Fprintf(b, `<text x="%g" y="24" font-size="16">%s</text>`+"\n", left, html.EscapeString(c.title))
	for _, v := range xs.ticks() {
		fmt.Fprintf(b, `<path d="M%.1f %gV%g" stroke="#dddddd"/><text x="%.1f" y="%g" text-anchor="middle">%s</text>`+"\n", x(v), top, bottom, x(v), bottom+18, xs.label(v))
	}
	for _, v := range ys.ticks() {
		fmt.Fprintf(b, `<path d="M%g %.1fH%g" stroke="#dddddd"/><text x="%g" y="%.1f" text-anchor="end">%s</text>`+"\n", left, y(v), right, left-8, y(v)+4, ys.label(v))
	}
	fmt.Fprintf(b, `<path d="M%g %gV%gH%g" fill="none" stroke="#000000"/>`+"\n", left, top, bottom, right)
	fmt.Fprintf(b, `<text x="%g" y="%g" text-anchor="middle">%s</text>`+"\n", (left+right)/2, bottom+40, html.EscapeString(c.x))
	fmt.Fprintf(b, `<text transform="translate(18 %g) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (top+bottom)/2, html.EscapeString(c.y))
	for i, l := range c.lines {
		style := fmt.Sprintf(`fill="none" stroke="%s" stroke-width="1.8" stroke-dasharray="%s"`, palette[i%len(palette)], dashes[i%len(dashes)])
		b.WriteString(`<path d="`)
		for k, p := range thin(l.points) {
			command := "L"
			if k == 0 {
				command = "M"
			}
			fmt.Fprintf(b, "%s%.1f %.1f", command, x(p.x), y(p.y))
		}
		fmt.Fprintf(b, `" %s/>`+"\n", style)
		at := legendY + legendStep*i
		fmt.Fprintf(b, `<path d="M%d %dh28" %s/><text x="%d" y="%d">%s</text><text x="%d" y="%d" text-anchor="end">%s</text>`+"\n",
			legendX, at-4, style, legendX+36, at, html.EscapeString(l.name), width-12, at, strconv.FormatFloat(l.last(), 'f', ys.decimals()+1, 64))
	}
}

// thin keeps at most mostPoints, evenly, the last among them.
func thin(points []point) []point {
	if len(points) <= mostPoints {
		return points
	}
	kept := make([]point, mostPoints)
	for i := range kept {
		kept[i] = points[i*(len(points)-1)/(mostPoints-1)]
	}
	return kept
}

// axis goes from one tick to another.
type axis struct{ from, to, step float64 }

// scale finds round numbers around all values.
func (c chart) scale(value func(point) float64) axis {
	least, most := math.Inf(1), math.Inf(-1)
	for _, l := range c.lines {
		for _, p := range l.points {
			least, most = min(least, value(p)), max(most, value(p))
		}
	}
	switch {
	case least > most: // nothing
		least, most = 0, 1
	case least == most:
		most = least + 1
	}
	step := math.Pow(10, math.Floor(math.Log10(most-least)))
	for _, factor := range []float64{0.1, 0.2, 0.5, 1, 2} {
		if (most-least)/(step*factor) <= 8 {
			step *= factor
			break
		}
	}
	return axis{math.Floor(least/step+1e-9) * step, math.Ceil(most/step-1e-9) * step, step}
}

func (a axis) ticks() (at []float64) {
	for i := 0; ; i++ {
		v := a.from + float64(i)*a.step
		if v > a.to+a.step/2 {
			return at
		}
		at = append(at, v)
	}
}

// decimals are as many as tell the ticks apart.
func (a axis) decimals() int { return max(0, int(math.Ceil(-math.Log10(a.step)-1e-9))) }

func (a axis) label(v float64) string { return strconv.FormatFloat(v, 'f', a.decimals(), 64) }

// svg stacks charts.
func svg(charts []chart) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, height*len(charts), width, height*len(charts))
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height*len(charts))
	for i, c := range charts {
		fmt.Fprintf(&b, `<g transform="translate(0 %d)">`+"\n", height*i)
		c.draw(&b)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// beginPlot finds out before the work whether a plot can be at path; nil: nobody asks for one. It replaces none of the files that are read.
func beginPlot(path string, read ...string) (*file.Replacement, error) {
	if path == "" {
		return nil, nil
	}
	if there, err := os.Stat(path); err == nil {
		for _, other := range read {
			if input, err := os.Stat(other); err == nil && os.SameFile(there, input) {
				return nil, fmt.Errorf("write %s: it is the file %s, which is read: give the plot another name", path, other)
			}
		}
	}
	return file.Create(path)
}

// save writes charts to a file that was begun before the work; nil: nobody asked for it.
func save(f *file.Replacement, charts ...chart) error {
	if f == nil {
		return nil
	}
	if _, err := io.WriteString(f, svg(charts)); err != nil {
		return err
	}
	return f.Commit()
}
