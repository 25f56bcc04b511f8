// Command workload puts unmodified etcd clients to work on an endpoint and
// checks everything that they rely on. README.md says how to use it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sharded-etcd/sharded-etcd/e2e/workload/bulk"
	"github.com/sharded-etcd/sharded-etcd/e2e/workload/hot"
	"github.com/sharded-etcd/sharded-etcd/e2e/workload/load"
)

const usage = `usage: workload COMMAND [options]

commands:
  run          load an endpoint with writers, watchers, readers, lock holders and lease keepers; judge what they saw
  copy         copy the keys and values of a prefix from one endpoint to another
  diff         compare a prefix on two endpoints, key by key and value by value
  seed         fill a prefix with keys that depend on the seed only; with --state, record them in a file
  hot          read and write the keys of a seed, a few directories far more often than the others; print rates and latencies
  verify-seed  compare a prefix with such a file: value, create and mod revision, version, lease

"workload COMMAND --help" lists the options. Exit codes: 0 all is well, 1 something is not, 2 wrong usage.
`

// Exit codes.
const (
	exitOK    = 0
	exitFail  = 1
	exitUsage = 2
)

// errUsage marks errors of the caller.
var errUsage = errors.New("wrong usage")

func main() {
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(exitUsage)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	commands := map[string]func(context.Context, []string) (bool, error){
		"run": run, "copy": copyKeys, "diff": diff, "seed": seed, "hot": hotSpot, "verify-seed": verifySeed,
	}
	command, known := commands[os.Args[1]]
	if !known {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(exitUsage)
	}
	good, err := command(ctx, os.Args[2:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(exitOK)
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "workload %s: %v\n", os.Args[1], err)
		os.Exit(exitUsage)
	case err != nil:
		fmt.Fprintf(os.Stderr, "workload %s: %v\n", os.Args[1], err)
		os.Exit(exitFail)
	case !good:
		os.Exit(exitFail)
	}
}

// parse reads the options; anything left over is an error.
func parse(f *flag.FlagSet, args []string) error {
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if f.NArg() > 0 {
		return fmt.Errorf("%w: %q is not an option", errUsage, f.Arg(0))
	}
	return nil
}

// list splits at commas and drops nothing but empty ends.
func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func run(ctx context.Context, args []string) (bool, error) {
	f := flag.NewFlagSet("workload run", flag.ContinueOnError)
	var cfg load.Config
	endpoints := f.String("endpoints", "127.0.0.1:2379", "endpoints, separated by commas; clients take them in turn")
	prefixes := f.String("prefixes", "/registry/pods/,/registry/services/,/app/,/config/", "prefixes to write under, separated by commas, each ending in /")
	splittable := f.String("splittable", "", "prefixes inside which one directory may span shards: no Txn of several keys there")
	report := f.String("report", "", "file for the report, as JSON")
	f.DurationVar(&cfg.Duration, "duration", 0, "how long to run (60s when --until-file is not given either)")
	f.StringVar(&cfg.UntilFile, "until-file", "", "stop when this path appears; --duration is then a limit")
	f.Uint64Var(&cfg.Seed, "seed", uint64(time.Now().UnixNano()%1_000_000), "seed of all random choices")
	f.IntVar(&cfg.Writers, "writers", 8, "writers, each with keys of its own")
	f.IntVar(&cfg.Watchers, "watchers", 4, "watchers: clients with a watch on each prefix and on narrower ones")
	f.IntVar(&cfg.Readers, "readers", 2, "readers")
	f.IntVar(&cfg.Lockers, "lockers", 3, "clients that take locks and leadership")
	f.IntVar(&cfg.Leases, "leases", 3, "clients that keep leases; as many that drop and that revoke them")
	f.StringVar(&cfg.LockPrefix, "lock-prefix", "/locks/", "prefix of locks and elections")
	f.IntVar(&cfg.KeysPerDir, "keys-per-dir", 4, "keys of a writer in each of its directories (five in a prefix)")
	f.IntVar(&cfg.ValueBytes, "value-bytes", 128, "size of a value; one in fifty is ten times larger")
	f.Float64Var(&cfg.Rate, "rate", 50, "writes per second of each writer, at most")
	f.DurationVar(&cfg.OpTimeout, "op-timeout", 15*time.Second, "deadline of one request")
	f.DurationVar(&cfg.StallReport, "max-write-stall", 2*time.Second, "longer waits for a write are listed in the report; they fail nothing")
	f.BoolVar(&cfg.Tolerate, "tolerate-unavailable", false, "Unavailable, timeouts and broken connections are counted, not failed")
	f.DurationVar(&cfg.FaultMax, "fault-max", 0, "longest fault that somebody makes meanwhile: leases may end so much later")
	f.DurationVar(&cfg.Compact, "compact-every", 0, "compact at this interval; 0 is never")
	f.Int64Var(&cfg.CompactLag, "compact-lag", 1000, "revisions to keep behind a compaction")
	f.DurationVar(&cfg.FinalWait, "final-wait", 30*time.Second, "how long each step at the end may take")
	f.BoolVar(&cfg.OneRevision, "revoke-in-one-revision", false, "a revoke has to delete all keys in one revision, as one etcd does")
	f.BoolVar(&cfg.Quiet, "quiet", false, "no progress lines on standard error")
	if err := parse(f, args); err != nil {
		return false, err
	}
	cfg.Endpoints, cfg.Prefixes, cfg.Splittable = list(*endpoints), list(*prefixes), list(*splittable)
	if cfg.Duration == 0 && cfg.UntilFile == "" {
		cfg.Duration = time.Minute
	}
	if err := cfg.Validate(); err != nil {
		return false, fmt.Errorf("%w: %w", errUsage, err)
	}
	rep, err := load.Run(ctx, cfg)
	if err != nil {
		return false, err
	}
	if *report != "" {
		text, err := json.MarshalIndent(rep, "", "  ")
		if err == nil {
			err = os.WriteFile(*report, append(text, '\n'), 0o644)
		}
		if err != nil {
			return false, fmt.Errorf("cannot write the report: %w", err)
		}
	}
	rep.Print(os.Stdout)
	return rep.Failed == 0, nil
}

// dialTwo makes clients for two endpoints and a function that closes them.
func dialTwo(a, b string) (*clientv3.Client, *clientv3.Client, func(), error) {
	if a == "" || b == "" {
		return nil, nil, nil, fmt.Errorf("%w: two endpoints are needed", errUsage)
	}
	x, err := load.Dial(list(a))
	if err != nil {
		return nil, nil, nil, err
	}
	y, err := load.Dial(list(b))
	if err != nil {
		_ = x.Close()
		return nil, nil, nil, err
	}
	return x, y, func() { _ = x.Close(); _ = y.Close() }, nil
}

func copyKeys(ctx context.Context, args []string) (bool, error) {
	f := flag.NewFlagSet("workload copy", flag.ContinueOnError)
	from := f.String("from", "", "endpoint to read from")
	to := f.String("to", "", "endpoint to write to")
	prefix := f.String("prefix", "", "prefix to copy; empty: everything")
	parallel := f.Int("parallel", 16, "puts under way at a time")
	if err := parse(f, args); err != nil {
		return false, err
	}
	if *parallel < 1 {
		return false, fmt.Errorf("%w: --parallel must be 1 or more", errUsage)
	}
	a, b, done, err := dialTwo(*from, *to)
	if err != nil {
		return false, err
	}
	defer done()
	n, err := bulk.Copy(ctx, a, b, *prefix, *parallel)
	if err != nil {
		return false, fmt.Errorf("stopped after reading %d keys: %w", n.Keys, err)
	}
	fmt.Printf("copied %d keys, %d bytes\n", n.Keys, n.Bytes)
	return true, nil
}

func diff(ctx context.Context, args []string) (bool, error) {
	f := flag.NewFlagSet("workload diff", flag.ContinueOnError)
	a := f.String("a", "", "first endpoint")
	b := f.String("b", "", "second endpoint")
	prefix := f.String("prefix", "", "prefix to compare; empty: everything")
	if err := parse(f, args); err != nil {
		return false, err
	}
	x, y, done, err := dialTwo(*a, *b)
	if err != nil {
		return false, err
	}
	defer done()
	d, err := bulk.Diff(ctx, x, y, *prefix)
	if err != nil {
		return false, err
	}
	for _, line := range d.Details {
		fmt.Println(line)
	}
	fmt.Printf("%d keys equal (%d bytes), %d values differ, %d only on A, %d only on B (at revision %d and %d)\n",
		d.Equal, d.Bytes, d.Values, d.OnlyA, d.OnlyB, d.RevisionA, d.RevisionB)
	return d.Same(), nil
}

func seed(ctx context.Context, args []string) (bool, error) {
	f := flag.NewFlagSet("workload seed", flag.ContinueOnError)
	var s bulk.Seed
	endpoints := f.String("endpoints", "127.0.0.1:2379", "endpoints, separated by commas")
	state := f.String("state", "", "file to record every key's state in afterwards")
	f.StringVar(&s.Prefix, "prefix", "/seed/", "prefix to fill")
	f.IntVar(&s.Keys, "keys", 1000, "number of keys")
	f.IntVar(&s.Dirs, "dirs", 10, "number of directories")
	f.IntVar(&s.ValueBytes, "value-bytes", 256, "size of a value")
	f.Uint64Var(&s.Random, "seed", 1, "seed of the values")
	f.IntVar(&s.Parallel, "parallel", 16, "puts under way at a time")
	if err := parse(f, args); err != nil {
		return false, err
	}
	if s.Keys < 1 || s.Dirs < 1 || s.Parallel < 1 {
		return false, fmt.Errorf("%w: --keys, --dirs and --parallel must be 1 or more", errUsage)
	}
	cli, err := load.Dial(list(*endpoints))
	if err != nil {
		return false, err
	}
	defer func() { _ = cli.Close() }()
	if err := s.Fill(ctx, cli); err != nil {
		return false, err
	}
	fmt.Printf("filled %d keys in %d directories of %s, %d bytes each\n", s.Keys, s.Dirs, s.Prefix, s.ValueBytes)
	if *state == "" {
		return true, nil
	}
	n, err := bulk.Record(ctx, cli, s.Prefix, *state)
	if err != nil {
		return false, err
	}
	fmt.Printf("recorded %d keys in %s\n", n, *state)
	return n >= int64(s.Keys), nil
}

func hotSpot(ctx context.Context, args []string) (bool, error) {
	f := flag.NewFlagSet("workload hot", flag.ContinueOnError)
	var cfg hot.Config
	endpoints := f.String("endpoints", "127.0.0.1:2379", "endpoints, separated by commas")
	f.StringVar(&cfg.Seed.Prefix, "prefix", "/seed/", "prefix that was filled")
	f.IntVar(&cfg.Seed.Keys, "keys", 1000, "number of keys that were filled")
	f.IntVar(&cfg.Seed.Dirs, "dirs", 10, "number of directories that were filled; the first is the hottest")
	f.IntVar(&cfg.Seed.ValueBytes, "value-bytes", 256, "size of a value")
	f.Uint64Var(&cfg.Random, "seed", 1, "seed of all random choices")
	f.Float64Var(&cfg.Exponent, "zipf", 1, "the n-th directory gets 1/n^ZIPF of what the first gets; 0 is even")
	f.Float64Var(&cfg.Reads, "reads", 0.5, "part of the requests that read, 0 to 1")
	f.IntVar(&cfg.Clients, "clients", 32, "requests under way at a time")
	f.DurationVar(&cfg.Duration, "duration", 30*time.Second, "how long to run")
	f.DurationVar(&cfg.Timeout, "op-timeout", 15*time.Second, "deadline of one request")
	if err := parse(f, args); err != nil {
		return false, err
	}
	if cfg.Clients < 1 || cfg.Seed.Dirs < 1 || cfg.Seed.Keys < cfg.Seed.Dirs || cfg.Reads < 0 || cfg.Reads > 1 || cfg.Exponent < 0 {
		return false, fmt.Errorf("%w: --clients and --dirs must be 1 or more, --keys at least --dirs, --reads 0 to 1, --zipf 0 or more", errUsage)
	}
	cli, err := load.Dial(list(*endpoints))
	if err != nil {
		return false, err
	}
	defer func() { _ = cli.Close() }()
	result, err := hot.Run(ctx, cli, cfg)
	if err != nil {
		return false, err
	}
	text, err := json.Marshal(result)
	if err != nil {
		return false, err
	}
	fmt.Println(string(text))
	return result.Errors == 0, nil
}

func verifySeed(ctx context.Context, args []string) (bool, error) {
	f := flag.NewFlagSet("workload verify-seed", flag.ContinueOnError)
	endpoints := f.String("endpoints", "127.0.0.1:2379", "endpoints, separated by commas; each one is verified")
	prefix := f.String("prefix", "/seed/", "prefix that was filled")
	state := f.String("state", "", "file with the recorded state")
	if err := parse(f, args); err != nil {
		return false, err
	}
	if *state == "" {
		return false, fmt.Errorf("%w: --state is needed", errUsage)
	}
	good := true
	for _, endpoint := range list(*endpoints) {
		cli, err := load.Dial([]string{endpoint})
		if err != nil {
			return false, err
		}
		v, err := bulk.Verify(ctx, cli, *prefix, *state)
		_ = cli.Close()
		if err != nil {
			return false, err
		}
		for _, line := range v.Details {
			fmt.Println(line)
		}
		fmt.Printf("%s: %d keys as they were, %d missing, %d changed, %d new\n", endpoint, v.Equal, v.Missing, v.Changed, v.Extra)
		good = good && v.Same()
	}
	return good, nil
}
