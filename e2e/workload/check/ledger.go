package check

import (
	"fmt"
	"sort"
	"sync"
)

// maxDetails bounds the violations of one invariant that are kept in words.
const maxDetails = 20

// Result is the verdict on one invariant.
type Result struct {
	Name       string   `json:"name"`
	OK         bool     `json:"ok"`
	Checked    int64    `json:"checked"`
	Violations int64    `json:"violations"`
	Details    []string `json:"details,omitempty"`
	Note       string   `json:"note,omitempty"`
}

// Ledger collects verdicts. It is safe for concurrent use.
type Ledger struct {
	mu      sync.Mutex
	results map[string]*Result
	order   []string
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{results: map[string]*Result{}}
}

func (l *Ledger) get(name string) *Result {
	r := l.results[name]
	if r == nil {
		r = &Result{Name: name}
		l.results[name] = r
		l.order = append(l.order, name)
	}
	return r
}

// Pass counts n successful checks of an invariant.
func (l *Ledger) Pass(name string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.get(name).Checked += int64(n)
}

// Fail counts a violation and keeps the first ones in words.
func (l *Ledger) Fail(name, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.get(name)
	r.Checked++
	r.Violations++
	if len(r.Details) < maxDetails {
		r.Details = append(r.Details, fmt.Sprintf(format, args...))
	}
}

// That counts a check and, when it does not hold, a violation.
func (l *Ledger) That(ok bool, name, format string, args ...any) bool {
	if ok {
		l.Pass(name, 1)
	} else {
		l.Fail(name, format, args...)
	}
	return ok
}

// Note attaches a remark to an invariant.
func (l *Ledger) Note(name, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.get(name).Note = fmt.Sprintf(format, args...)
}

// Violations returns the number of violations of one invariant.
func (l *Ledger) Violations(name string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.results[name]; r != nil {
		return r.Violations
	}
	return 0
}

// Results returns all verdicts by name.
func (l *Ledger) Results() []Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Result, 0, len(l.order))
	for _, name := range l.order {
		r := *l.results[name]
		r.OK = r.Violations == 0
		out = append(out, r)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}
