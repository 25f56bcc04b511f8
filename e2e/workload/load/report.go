package load

import (
	"fmt"
	"io"
	"time"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/check"
)

// Report is the outcome of a run.
type Report struct {
	Run       string           `json:"run"`
	Seed      uint64           `json:"seed"`
	Endpoints []string         `json:"endpoints"`
	Started   time.Time        `json:"started"`
	Seconds   float64          `json:"seconds"`
	Revisions [2]int64         `json:"revisions"`
	Counts    map[string]int64 `json:"counts"`
	// LatencyMillis are quantiles of the time from wanting a write to its
	// acknowledgement, over all attempts.
	LatencyMillis map[string]float64 `json:"latency_millis"`
	LongestStalls []Stall            `json:"longest_stalls"`
	StallsOver    []Stall            `json:"stalls_over_limit"`
	Outages       []OutageSeconds    `json:"outages"`
	Watches       []WatchCount       `json:"watches"`
	Errors        []ErrorCount       `json:"errors"`
	Invariants    []check.Result     `json:"invariants"`
	Passed        int                `json:"passed"`
	Failed        int                `json:"failed"`
}

// OutageSeconds is a time in which the endpoint did not answer.
type OutageSeconds struct {
	From float64 `json:"from"`
	To   float64 `json:"to"`
}

// WatchCount is what one watch delivered.
type WatchCount struct {
	Name     string `json:"name"`
	Start    int64  `json:"start"`
	Until    int64  `json:"until"`
	Events   int    `json:"events"`
	Progress int    `json:"progress"`
}

func (e *env) report(h *check.History, began time.Time, ran time.Duration) *Report {
	s := &e.stats
	rep := &Report{
		Run: e.run, Seed: e.cfg.Seed, Endpoints: e.cfg.Endpoints, Started: began, Seconds: ran.Seconds(),
		Revisions: [2]int64{h.BaseRev, h.FinalRev},
		Counts: map[string]int64{
			"writes_acked": s.acked.Load(), "writes_ambiguous": s.ambiguous.Load(), "writes_resolved": s.resolved.Load(),
			"writes_refused": s.refused.Load(), "guards_failed_as_expected": s.guardFailed.Load(),
			"reads": s.reads.Load(), "lists": s.lists.Load(),
			"locks": s.locks.Load(), "guarded_writes": s.guarded.Load(), "fenced_off": s.fencedOff.Load(),
			"elections_won": s.campaigns.Load(), "leaders_observed": s.observed.Load(),
			"cross_directory_txns": s.crossDone.Load(), "cross_directory_txns_refused": s.crossRefused.Load(),
			"leases_granted": s.leasesGranted.Load(), "leases_lost_in_outages": s.leasesLost.Load(),
			"leases_dropped": s.leasesDropped.Load(), "leases_revoked": s.leasesRevoked.Load(), "keepalives": s.keepalives.Load(),
			"stm_commits": s.stmCommits.Load(), "reflector_restarts": s.reflectorStarts.Load(),
			"compactions": s.compactions.Load(), "late_watches": s.lateWatches.Load(), "progress_notifications": s.progress.Load(),
		},
		LatencyMillis: map[string]float64{},
		Errors:        e.errs.list(), Invariants: e.led.Results(),
	}
	for name, q := range map[string]float64{"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1} {
		rep.LatencyMillis[name] = float64(e.stalls.quantile(q).Microseconds()) / 1000
	}
	rep.LongestStalls, rep.StallsOver = e.stalls.lists()
	if len(rep.LongestStalls) > 0 {
		rep.LatencyMillis["max"] = rep.LongestStalls[0].Millis
	}
	for _, o := range h.Outages {
		rep.Outages = append(rep.Outages, OutageSeconds{o.From.Seconds(), o.To.Seconds()})
	}
	for _, w := range h.Watches {
		rep.Watches = append(rep.Watches, WatchCount{w.Name, w.Start, w.Until, len(w.Deliveries), len(w.Progress)})
	}
	for _, r := range rep.Invariants {
		if r.OK {
			rep.Passed++
		} else {
			rep.Failed++
		}
	}
	return rep
}

// Print writes the verdicts for people, the closing line last.
func (rep *Report) Print(out io.Writer) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format, args...) }
	p("run %s: seed %d, %.0f s, revisions %d to %d\n", rep.Run, rep.Seed, rep.Seconds, rep.Revisions[0], rep.Revisions[1])
	c := rep.Counts
	p("writes: %d acknowledged, %d ambiguous (%d resolved), %d refused; time to acknowledgement p50 %.1f ms, p99 %.1f ms, max %.1f ms\n",
		c["writes_acked"], c["writes_ambiguous"], c["writes_resolved"], c["writes_refused"],
		rep.LatencyMillis["p50"], rep.LatencyMillis["p99"], rep.LatencyMillis["max"])
	events := 0
	for _, w := range rep.Watches {
		events += w.Events
	}
	p("watches: %d (%d late), %d events; reads: %d; locks: %d, elections: %d; leases: %d granted, %d lost in outages\n",
		len(rep.Watches), c["late_watches"], events, c["reads"], c["locks"], c["elections_won"], c["leases_granted"], c["leases_lost_in_outages"])
	for i, s := range rep.LongestStalls {
		if i < 3 {
			p("stall: %s waited %.0f ms from %.1f s on for %s\n", s.Writer, s.Millis, s.AtSeconds, s.Key)
		}
	}
	for _, o := range rep.Outages {
		p("outage: %.1f s to %.1f s\n", o.From, o.To)
	}
	for i, e := range rep.Errors {
		if i < 20 {
			p("error: %d × %s\n", e.Count, e.Text)
		}
	}
	for _, r := range rep.Invariants {
		word := "ok  "
		if !r.OK {
			word = "FAIL"
		}
		p("%s %s (%d checked, %d violations)", word, r.Name, r.Checked, r.Violations)
		if r.Note != "" {
			p(" %s", r.Note)
		}
		p("\n")
		for _, d := range r.Details {
			p("       %s\n", d)
		}
	}
	p("%d passed, %d failed\n", rep.Passed, rep.Failed)
}
