// SPDX-License-Identifier: Apache-2.0

// Package run runs one command behind a filter of its own: `netfenced run`.
//
// The command starts when its cgroup exists, the filter is in force for it, and package confine has shut the ways out;
// until then nothing of the caller's runs in it. Whatever ends the command, or this process, ends everything that it
// has started.
package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/config"
	"github.com/netfence/netfence/internal/confine"
	"github.com/netfence/netfence/policy"
)

// CodeFailed is the exit code when Netfence failed, and not the command.
const CodeFailed = confine.CodeFailed

// Options say what to run, and behind what.
type Options struct {
	Config  *config.Config // where the daemon is, and limits
	Command []string       // with its arguments

	PolicyFile  string   // empty: an empty allowlist
	Allow, Deny []string // rules in short form, added to it
	Upstreams   []string // DNS servers, in place of the policy's
	Audit       bool

	User   string // NAME or UID, and :GROUP or :GID; empty: who called sudo, or root
	AsRoot bool   // root, although somebody called sudo

	Report  string // file for the result as JSON; empty: none
	Environ []string
	Stderr  io.Writer
}

// session is one run, and what of it has to be undone.
type session struct {
	Options
	policy *policy.Policy
	caller caller
	report *reportFile

	id        string
	signals   *signals
	tally     *tally
	entry     *entry
	cgroup    *cgroup
	fence     fence
	process   *confine.Process
	terminal  *terminal
	started   time.Time
	exitCode  int
	concluded bool // there is something to report

	collecting int // garbage, in percent, once the command runs
}

// Run runs the command and returns its exit code: 128 and the number of the signal that ended it, 126 and 127 as a shell
// has them, CodeFailed with an error when Netfence failed.
func Run(ctx context.Context, o Options) (int, error) {
	// The heap of a start is small and short-lived: to collect it takes a tenth of the time until the command runs.
	s := &session{Options: o, exitCode: CodeFailed, collecting: debug.SetGCPercent(-1)}
	defer debug.SetGCPercent(s.collecting)
	err := s.run(ctx)
	if cleanup := s.close(); cleanup != nil {
		err = errors.Join(err, cleanup)
	}
	if s.concluded {
		err = errors.Join(err, s.conclude())
	}
	var told *confine.Error
	var ended *endedError
	switch {
	case errors.As(err, &ended):
		return 128 + int(ended.signal), nil
	case errors.As(err, &told):
		return told.Code, err
	}
	return s.exitCode, err
}

// endedError says that a signal ended us before the command began.
type endedError struct{ signal syscall.Signal }

func (e *endedError) Error() string { return "ended by " + e.signal.String() }

func (s *session) run(ctx context.Context) (err error) {
	s.signals = catchSignals()
	if err := s.prepare(); err != nil {
		return err
	}
	// What others have left is no reason not to run.
	if err := Sweep(s.Config.RunDir); err != nil {
		fmt.Fprintln(s.Stderr, "netfenced run: leftovers of an earlier run:", err)
	}
	path, err := cgroupPath(s.id)
	if err != nil {
		return err
	}
	s.tally = newTally()
	if s.fence, err = chooseFence(s.Config, s.id, s.tally); err != nil {
		return err
	}
	// Written down before it is made, or nobody would find it.
	if s.entry, err = enlist(s.Config.RunDir, s.id); err != nil {
		return err
	}
	if err := s.entry.record(traces{Cgroup: path, Pins: s.fence.pins()}); err != nil {
		return err
	}
	s.fence.prepare()
	if s.cgroup, err = newCgroup(path); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	return s.attend()
}

// prepare reads what can be read before anything is made.
func (s *session) prepare() (err error) {
	var warnings []string
	if s.policy, warnings, err = s.Options.policy(); err != nil {
		return err
	}
	if unix.Geteuid() != 0 {
		return errors.New("needs root for its filter (run it with sudo; the command itself runs as you)")
	}
	if s.caller, err = resolveCaller(s.Options); err != nil {
		return err
	}
	if s.caller.warning != "" {
		warnings = append(warnings, s.caller.warning)
	}
	for _, warning := range warnings {
		fmt.Fprintln(s.Stderr, "netfenced run: warning:", warning)
	}
	if s.report, err = checkReport(s.Report, s.caller.invoker); err != nil {
		return err
	}
	id, err := uuid.NewV7()
	s.id = id.String()
	return err
}

// start returns when the command has been told to start: the filter is in force by then.
func (s *session) start(ctx context.Context) (err error) {
	if s.terminal, err = openTerminal(); err != nil {
		return err
	}
	foreground := s.terminal.ours()
	s.process, err = confine.Start(s.cgroup.dir, confine.Spec{
		Args: s.Command, Env: s.caller.environ(s.Environ), User: s.caller.User,
		Hide:     s.own(),
		Terminal: foreground,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // signals are ours to judge
	defer cancel()
	enforced := make(chan error, 1)
	go func() { enforced <- s.fence.enforce(ctx, s.cgroup.path, s.policy) }()
	ready, inForce := s.process.Ready(), enforced
	for ready != nil || inForce != nil {
		select {
		case err := <-ready:
			if ready = nil; err != nil {
				cancel()
				settle(inForce)
				return err
			}
		case err := <-inForce:
			if inForce = nil; err != nil {
				return err
			}
		case sig := <-s.signals.caught:
			if fatal(sig) {
				cancel()
				settle(inForce)
				return &endedError{sig}
			}
		}
	}
	s.started = time.Now()
	s.concluded = true
	if foreground {
		s.terminal.given = true
	}
	defer debug.SetGCPercent(s.collecting)
	return s.process.Go()
}

// own is what is Netfence's: who writes there, as uid 0 may, decides over other attachments.
func (s *session) own() []string {
	c := s.Config
	paths := []string{c.Socket, c.RunDir, c.DataDir, filepath.Dir(config.DefaultPath)}
	if c.ControlPlane.URL.Dir != "" {
		paths = append(paths, c.ControlPlane.URL.Dir)
	}
	return paths
}

// settle waits for what must not go on behind the back of close. How it ended does not matter any more.
func settle(c <-chan error) {
	if c != nil {
		<-c //nolint:errcheck // cancelled, mostly
	}
}

// attend passes signals on until the command has ended.
func (s *session) attend() error {
	for {
		select {
		case sig := <-s.signals.caught:
			if err := s.process.Signal(sig); err != nil {
				return fmt.Errorf("pass on %s: %w", sig, err)
			}
		case <-s.process.Stopped():
			if err := s.suspend(); err != nil {
				return err
			}
		case <-s.process.Ended():
			if err := <-s.process.Started(); err != nil {
				return err
			}
			var err error
			s.exitCode, err = s.process.Wait()
			return err
		}
	}
}

// close undoes everything, the filter not before all that it filters has ended. It goes on after failures: the next
// run sweeps what they leave.
func (s *session) close() error {
	var errs []error
	if s.process != nil {
		s.process.Kill()
		_, _ = s.process.Wait() // attend has seen it, or nobody wants to know
	}
	errs = append(errs, s.terminal.takeBack())
	empty := error(nil)
	if s.cgroup != nil {
		empty = s.cgroup.end()
		errs = append(errs, empty)
	}
	// What can not be killed, say while a network file system hangs, stays filtered: the next sweep finds it.
	if s.fence != nil && empty == nil {
		errs = append(errs, s.fence.close())
	}
	if s.cgroup != nil && empty == nil {
		errs = append(errs, s.cgroup.remove())
	}
	if s.entry != nil {
		errs = append(errs, s.entry.close(errors.Join(errs...) == nil, s.fence.pins()))
	}
	s.signals.stop()
	return errors.Join(errs...)
}

// conclude says what was denied, or would have been.
func (s *session) conclude() error {
	result := s.tally.result()
	result.Command, result.ExitCode, result.Audit = s.Command, s.exitCode, s.policy.Audit
	result.Duration = inSeconds(time.Since(s.started))
	err := result.print(s.Stderr)
	return errors.Join(err, s.report.write(result))
}

// fence is a filter in the making, and in force.
type fence interface {
	// pins is the directory of BPF objects that outlives this process, empty if a daemon holds them.
	pins() string
	// prepare begins what takes long.
	prepare()
	// enforce returns when p is in force for the cgroup at path. After an error nothing may run there.
	enforce(ctx context.Context, path string, p *policy.Policy) error
	// close ends the filter, when the cgroup is empty, and returns when all that it has seen has been told.
	close() error
}

// chooseFence takes the daemon that answers, or else this process. Neither has made anything yet.
func chooseFence(c *config.Config, id string, t *tally) (fence, error) {
	daemon, err := dialDaemon(c.Socket, id, t)
	if err != nil {
		return nil, err
	}
	if daemon != nil {
		return daemon, nil
	}
	return newOwn(c, id, t), nil
}
