// Package load runs unmodified etcd clients (clientv3 and its concurrency
// recipes) against one or several endpoints and records what they see, for
// package check to judge.
package load

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Config says what to run. Zero values are not defaults; the command line has
// those.
type Config struct {
	Endpoints   []string
	Duration    time.Duration
	UntilFile   string // stop when this path appears; empty: after Duration
	Seed        uint64
	Writers     int
	Watchers    int
	Readers     int
	Lockers     int
	Leases      int // actors in each of the three roles: keep, drop, revoke
	Prefixes    []string
	Splittable  []string // prefixes in which a directory may span shards
	LockPrefix  string
	KeysPerDir  int
	ValueBytes  int
	Rate        float64 // writes per second of each writer
	OpTimeout   time.Duration
	StallReport time.Duration // longer write stalls are listed
	Tolerate    bool          // unavailable and ambiguous answers are counted, not failed
	FaultMax    time.Duration // a lease may end so much later
	Compact     time.Duration // 0: never
	CompactLag  int64         // revisions kept behind a compaction
	FinalWait   time.Duration // bound on catching up at the end
	OneRevision bool          // a revoke has to delete all keys in one revision
	Quiet       bool
}

// Validate refuses what cannot work, in words for the caller.
func (c *Config) Validate() error {
	if len(c.Endpoints) == 0 {
		return errors.New("no endpoint given; use --endpoints host:port[,host:port]")
	}
	if c.Duration <= 0 && c.UntilFile == "" {
		return errors.New("no end given; use --duration or --until-file")
	}
	if len(c.Prefixes) == 0 {
		return errors.New("no prefix given; use --prefixes /a/,/b/")
	}
	all := append([]string{c.LockPrefix}, c.Prefixes...)
	for i, a := range all {
		if !strings.HasSuffix(a, "/") {
			return fmt.Errorf("prefix %q does not end with \"/\"", a)
		}
		for j, b := range all {
			if i != j && strings.HasPrefix(a, b) {
				return fmt.Errorf("prefix %q is inside prefix %q; give separate ones", a, b)
			}
		}
	}
	if c.Writers < 1 || c.Watchers < 1 {
		return errors.New("at least one writer and one watcher are needed to judge anything")
	}
	if c.KeysPerDir < 2 || c.Rate <= 0 || c.ValueBytes < 40 {
		return errors.New("--keys-per-dir must be 2 or more, --rate above 0, --value-bytes 40 or more")
	}
	return nil
}

func (c *Config) splittable(prefix string) bool {
	for _, s := range c.Splittable {
		if strings.HasPrefix(prefix, s) || strings.HasPrefix(s, prefix) {
			return true
		}
	}
	return false
}
