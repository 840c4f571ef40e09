// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// TestBrokenPolicyAtStart blocks new attachments, since a laxer file must not decide in its place, and leaves the
// existing ones what they have.
func TestBrokenPolicyAtStart(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	cg := testenv.NewCgroup(t)
	s.Policy(t, "strict.yaml", "priority: 10\n"+strings.TrimPrefix(tablePolicy, "\n"))
	s.Policy(t, "lax.yaml", "mode: disabled\n")
	s.Start(t)
	s.Attach(t, "--interface", s.Link)
	s.Stop(t)
	s.Policy(t, "strict.yaml", "priority: 10\nmode: [\n")
	s.Start(t)
	before := s.standing(t)
	fails(t, s.Run(t, "attach", "--cgroup", cg.Path), 1, "strict.yaml")
	if after := s.standing(t); !reflect.DeepEqual(before, after) {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
	if problems := s.Status(t).Problems; len(problems) != 1 || !strings.Contains(problems[0], "strict.yaml") {
		t.Errorf("problems: %v", problems)
	}
	s.check(t, s.Inside, table, silent)
	s.Policy(t, "strict.yaml", "priority: 10\nmode: block-all\n")
	testenv.Eventually(t, "no problem", func() bool { return len(s.Status(t).Problems) == 0 })
	s.Attach(t, "--cgroup", cg.Path)
	testenv.Eventually(t, "the mended policy for both", func() bool {
		return !slices.ContainsFunc(s.List(t), func(a harness.Attachment) bool { return a.Mode != "block-all" })
	})
}

// TestUnit starts the daemon with the capabilities of the packaged unit and no others.
func TestUnit(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	unit, err := os.ReadFile("../../packaging/netfenced.service")
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(unit), "\nCapabilityBoundingSet=")
	set, _, _ := strings.Cut(after, "\n")
	if !found || set == "" {
		t.Fatal("the unit has no CapabilityBoundingSet")
	}
	flag := "--bounding-set=-all"
	for _, name := range strings.Fields(set) {
		flag += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	s.Under = []string{"setpriv", flag, "--no-new-privs"}
	s.Policy(t, "table.yaml", tablePolicy)
	s.Start(t)
	s.Attach(t, "--interface", s.Link)
	s.Attach(t, "--cgroup", testenv.NewCgroup(t).Path)
	s.check(t, s.Inside, table, silent)
	if problems := s.Status(t).Problems; len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
}

// TestRefusedStart says why in its last line, touches nothing of what is there, and what is filtered stays so.
func TestRefusedStart(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	s.Policy(t, "table.yaml", tablePolicy)
	s.Start(t)
	s.Attach(t, "--interface", s.Link)
	fs := s.floods(t, "interface", s.Inside, 10)

	t.Run("second daemon", func(t *testing.T) {
		s.unchanged(t, func() {
			fails(t, s.start(t), 1, filepath.Join(s.RunDir, "lock"), "another netfenced holds it")
		})
	})
	t.Run("socket in use", func(t *testing.T) {
		other := harness.New(t, s.Host)
		other.Env = append(other.Env, "NETFENCE_SOCKET="+s.Socket)
		s.unchanged(t, func() {
			fails(t, ends(t, other.Go(t, "start", "--config", other.Config)), 1, "socket "+s.Socket, "another daemon answers there")
		})
		if _, err := os.Stat(other.BPFDir); !os.IsNotExist(err) {
			t.Errorf("it has pinned something: %v", err)
		}
	})

	s.Stop(t)
	pins := s.bpf(t)
	good, err := os.ReadFile(s.stateFile())
	if err != nil {
		t.Fatal(err)
	}
	garbage := bytes.Repeat([]byte("not a database "), 4096)
	for name, test := range map[string]struct {
		spoil func(t *testing.T)
		state []byte // that has to be there afterwards; nil: it has been opened by then
		start func(t *testing.T) harness.Result
		want  []string
	}{
		"state file is garbage": {func(t *testing.T) { s.writeState(t, garbage) }, garbage, s.start, []string{s.stateFile()}},
		"state file is cut off": {func(t *testing.T) { s.writeState(t, good[:len(good)/2]) }, good[:len(good)/2], s.start, []string{s.stateFile()}},
		"no root":               {func(*testing.T) {}, good, s.startAsNobody, []string{"missing privileges", "CAP_BPF", "run as root"}},
		"unknown key": {func(*testing.T) {}, good, func(t *testing.T) harness.Result {
			return s.startWith(t, "sockt: /tmp/x.sock\n")
		}, []string{"unknown key sockt", "did you mean socket?"}},
		"no bpffs": {func(t *testing.T) {}, good, func(t *testing.T) harness.Result {
			return s.startWith(t, "bpf_dir: "+t.TempDir()+"\n")
		}, []string{"not on a bpffs", "mount"}},
		"full disk":      {func(*testing.T) {}, good, s.startOnFullDisk, []string{"state file", "no space left on device"}},
		"private bpffs":  {func(*testing.T) {}, good, s.startWithPrivateBPFFS, []string{"private mount namespace", "would end with the daemon"}},
		"newer pins":     {func(*testing.T) {}, nil, s.startBesideNewerPins, []string{"newer netfenced", "start the newer one"}},
		"somebody's map": {func(*testing.T) {}, nil, s.startBesideForeignMap, []string{"maps/theirs", "no map of this netfenced"}},
	} {
		t.Run(name, func(t *testing.T) {
			test.spoil(t)
			fails(t, test.start(t), 1, test.want...)
			if now, err := os.ReadFile(s.stateFile()); err != nil || test.state != nil && !bytes.Equal(now, test.state) {
				t.Errorf("the state file was changed: %d bytes, were %d, %v", len(now), len(test.state), err)
			}
			if now := s.bpf(t); !slices.Equal(now, pins) {
				t.Errorf("pinned before %v\nafter %v", pins, now)
			}
			s.flowing(t, fs, 1000)
			s.writeState(t, good)
		})
	}
	s.Start(t)
	if list := s.List(t); len(list) != 1 {
		t.Errorf("list: %+v", list)
	}
	s.end(t, fs)
	s.check(t, s.Inside, table, silent)
}

// TestLostState leaves everything filtered as it was, says so, and is mended by detaching all.
func TestLostState(t *testing.T) {
	for name, lose := range map[string]func(s *scene, t *testing.T){
		"removed": func(s *scene, t *testing.T) {
			if err := os.Remove(s.stateFile()); err != nil {
				t.Fatal(err)
			}
		},
		// A daemon that was killed when it had just made the file leaves it so.
		"empty": func(s *scene, t *testing.T) { s.writeState(t, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, testenv.VethDevice)
			s.Policy(t, "policy.yaml", restartPolicy)
			s.Start(t)
			id := s.Attach(t, "--interface", s.Link)
			fs := s.floods(t, "interface", s.Inside, 10)
			s.Stop(t)
			lose(s, t)
			s.Start(t)
			if problems := s.Status(t).Problems; len(problems) != 1 || !strings.Contains(problems[0], id) ||
				!strings.Contains(problems[0], "detach --all") {
				t.Errorf("problems: %v", problems)
			}
			s.flowing(t, fs, 1000)
			s.onlyPinned(t, id)
			s.end(t, fs)

			s.Must(t, "detach", "--all")
			s.onlyPinned(t)
			if problems := s.Status(t).Problems; len(problems) != 0 {
				t.Errorf("problems: %v", problems)
			}
			s.check(t, s.Inside, all(true), nil)
			s.Attach(t, "--interface", s.Link)
		})
	}
}

func (s *scene) writeState(t *testing.T, data []byte) {
	t.Helper()
	if err := os.WriteFile(s.stateFile(), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *scene) start(t *testing.T) harness.Result {
	t.Helper()
	return ends(t, s.Go(t, "start", "--config", s.Config))
}

// ends waits for a daemon that has to refuse to run.
func ends(t *testing.T, result <-chan harness.Result) harness.Result {
	t.Helper()
	select {
	case r := <-result:
		return r
	case <-time.After(testenv.Patience):
		t.Fatal("the daemon runs")
		panic("unreachable")
	}
}

// startWith starts with the daemon's configuration and more.
func (s *scene) startWith(t *testing.T, more string) harness.Result {
	t.Helper()
	base, err := os.ReadFile(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	for key := range strings.Lines(more) {
		key, _, _ := strings.Cut(key, ":")
		var kept []string
		for line := range strings.Lines(string(base)) {
			if !strings.HasPrefix(line, key+":") {
				kept = append(kept, line)
			}
		}
		base = []byte(strings.Join(kept, ""))
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, append(base, more...), 0o600); err != nil {
		t.Fatal(err)
	}
	return ends(t, s.Go(t, "start", "--config", path))
}

func (s *scene) startAsNobody(t *testing.T) harness.Result {
	t.Helper()
	env := s.Env
	defer func() { s.Env = env }()
	s.Env = append(slices.Clone(env), "NETFENCE_RUN_DIR="+s.RunDir, "NETFENCE_BPF_DIR="+s.BPFDir, "NETFENCE_DATA_DIR="+filepath.Join(s.Dir, "data"))
	return s.asNobody(t, "start")
}

// startOnFullDisk starts where not even an empty state file has room.
func (s *scene) startOnFullDisk(t *testing.T) harness.Result {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	return s.startWith(t, "run_dir: "+dir+"\n")
}

// startWithPrivateBPFFS starts in a mount namespace that has another bpffs at the place of process 1's, which a PID
// namespace lets the daemon look at.
func (s *scene) startWithPrivateBPFFS(t *testing.T) harness.Result {
	t.Helper()
	binary, dir := s.Binary, t.TempDir()
	defer func() { s.Binary = binary }()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	inner := script("inner", fmt.Sprintf(`mount -t bpf bpf %s && exec %s "$@"`, filepath.Dir(s.BPFDir), binary))
	first := script("first", fmt.Sprintf(`unshare --mount --propagation private %s "$@"; exit $?`, inner))
	s.Binary = script("netfenced", fmt.Sprintf(`exec unshare --mount --pid --fork --kill-child --mount-proc %s "$@"`, first))
	return s.start(t)
}

func (s *scene) startBesideNewerPins(t *testing.T) harness.Result {
	t.Helper()
	newer := filepath.Join(s.BPFDir, "v99")
	if err := os.Mkdir(newer, 0o700); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Remove(newer); err != nil {
			t.Error(err)
		}
	}()
	return s.start(t)
}

func (s *scene) startBesideForeignMap(t *testing.T) harness.Result {
	t.Helper()
	theirs, err := ebpf.NewMap(&ebpf.MapSpec{Name: "theirs", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := theirs.Pin(filepath.Join(s.BPFDir, "v3", "maps", "theirs")); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(theirs.Unpin(), testenv.CloseBPF(theirs)); err != nil {
			t.Error(err)
		}
	}()
	return s.start(t)
}
