// Package etcdtest runs a real etcd for tests.
package etcdtest

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// binary is the path in the variable ETCD, or an etcd in PATH.
func binary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("ETCD"); path != "" {
		return path
	}
	path, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("no etcd: set ETCD to the path of one (e2e/tools builds it)")
	}
	return path
}

// Process is a real etcd that can be killed, stopped and started again.
type Process struct {
	// Endpoint is the client address, host:port.
	Endpoint string

	t      *testing.T
	binary string
	dir    string
	peer   string
	cmd    *exec.Cmd
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// Start starts an etcd and waits until it answers. It is killed when the test
// ends. The test is skipped when there is no etcd.
func Start(t *testing.T) *Process {
	t.Helper()
	p := &Process{t: t, binary: binary(t), dir: t.TempDir(), Endpoint: freePort(t), peer: freePort(t)}
	p.Restart()
	t.Cleanup(p.Kill)
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{p.Endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cli.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		call, stop := context.WithTimeout(ctx, time.Second)
		_, err := cli.Get(call, "ready")
		stop()
		if err == nil {
			return p
		}
		if ctx.Err() != nil {
			t.Fatalf("etcd at %s does not answer: %v", p.Endpoint, err)
		}
	}
}

// Restart starts the process on the data that is there.
func (p *Process) Restart() {
	client, peer := "http://"+p.Endpoint, "http://"+p.peer
	p.cmd = exec.Command(p.binary, "--data-dir", filepath.Join(p.dir, "data"), "--log-level", "error",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	if err := p.cmd.Start(); err != nil {
		p.t.Error(err)
	}
}

// Kill ends the process as kill -9 does.
func (p *Process) Kill() {
	if p.cmd.Process != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// Signal sends a signal, such as SIGSTOP.
func (p *Process) Signal(s syscall.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Error(err)
	}
}
