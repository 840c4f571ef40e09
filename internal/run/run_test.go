// SPDX-License-Identifier: Apache-2.0

package run

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// dial and reach connect by TCP; the process fails if it cannot. What is dialed is not to be reached, and so not waited
// for.
var (
	_ = testenv.NewFunc("dial", connectWithin(300*time.Millisecond))
	_ = testenv.NewFunc("reach", connectWithin(testenv.Patience))
)

func connectWithin(wait time.Duration) func(args []string) error {
	return func(args []string) error {
		conn, err := net.DialTimeout("tcp", args[0], wait)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

func TestExitCodes(t *testing.T) {
	b := newBench(t)
	script := filepath.Join(b.dir, "noshebang")
	broken := filepath.Join(b.dir, "broken")
	for path, text := range map[string]string{script: "exit 9\n", broken: "#!/no/such/interpreter\n"} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name    string
		command []string
		code    int
		stderr  string
	}{
		{"done", []string{"true"}, 0, ""},
		{"its own", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"125 of its own", []string{"sh", "-c", "exit 125"}, 125, ""},
		{"killed", []string{"sh", "-c", "kill -KILL $$"}, 137, ""},
		{"terminated", []string{"sh", "-c", "kill -TERM $$"}, 143, ""},
		{"not found", []string{"no-such-command"}, 127, "run: no-such-command: command not found\n"},
		{"no such file", []string{"/no/such/file"}, 127, "run: /no/such/file: command not found\n"},
		{"empty", []string{""}, 127, "run: the command's name is empty\n"},
		{"not executable", []string{"/etc/passwd"}, 126, "run: /etc/passwd: permission denied\n"},
		{"directory", []string{"/etc"}, 126, "run: /etc: is a directory\n"},
		{"no interpreter", []string{broken}, 127, "run: " + broken + ": no such file or directory\n"},
		{"script without one", []string{script}, 9, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := b.run(t, test.command...)
			if got.code != test.code || got.stderr != test.stderr || got.stdout != "" {
				t.Errorf("got %+v, want code %d and %q", got, test.code, test.stderr)
			}
		})
	}
}

// What is wrong is said before anything is made.
func TestRefusals(t *testing.T) {
	b := newBench(t)
	for _, test := range []struct {
		name   string
		change func(*order)
		stderr string
	}{
		{"user", func(o *order) { o.User = "no-such-user" }, "run: user no-such-user: not found\n"},
		{"group", func(o *order) { o.User = "nobody:no-such-group" }, "run: group no-such-group: not found\n"},
		{"report", func(o *order) { o.Report = "/no/such/dir/report" }, "run: report /no/such/dir/report: no such file or directory\n"},
		{"sudo without group", func(o *order) { o.Environ = append(o.Environ, "SUDO_UID=1") }, "run: SUDO_UID is set without SUDO_GID (say --user, or --as-root)\n"},
		{"no bpffs", func(o *order) { o.BPFDir = b.dir }, "run: bpf_dir " + b.dir + ": not on a bpffs (mount one: mount -t bpf bpf " + b.dir + ")\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			changed := *b
			test.change(&changed.order)
			got := changed.run(t, "touch", filepath.Join(b.dir, "ran"))
			if got.code != CodeFailed || got.stderr != test.stderr {
				t.Errorf("got %+v, want %q", got, test.stderr)
			}
			if _, err := os.Stat(filepath.Join(b.dir, "ran")); err == nil {
				t.Error("the command ran")
			}
		})
	}
}

func TestReaches(t *testing.T) {
	b := newBench(t)
	port, reached := listen(t)
	to := "127.0.0.1:" + port
	if got := b.sh(t, b.call(t, "dial", to)); got.code == 0 || reached() != 0 {
		t.Errorf("reached without a rule: %+v", got)
	}
	b.Allow = []string{to}
	if got := b.sh(t, b.call(t, "reach", to)); got.code != 0 {
		t.Errorf("not reached with a rule: %+v", got)
	}
	b.Deny = []string{to}
	if got := b.sh(t, b.call(t, "dial", to)); got.code == 0 {
		t.Errorf("reached against a rule: %+v", got)
	}
}

// The guard of the configuration is above what the flags say.
func TestGuard(t *testing.T) {
	b := newBench(t)
	port, reached := listen(t)
	to := "127.0.0.1:" + port
	b.Guard = &policy.Guard{}
	rule, _, err := policy.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	b.Guard.Deny = []policy.Rule{*rule}
	b.Allow = []string{to}
	if got := b.sh(t, b.call(t, "dial", to)); got.code == 0 || reached() != 0 {
		t.Errorf("reached against the guard: %+v", got)
	}
	b.Guard = &policy.Guard{Allow: b.Guard.Deny}
	b.Allow, b.Deny = nil, []string{to}
	if got := b.sh(t, b.call(t, "reach", to)); got.code != 0 {
		t.Errorf("not reached with the guard's leave: %+v", got)
	}
}

func TestSummaryAndReport(t *testing.T) {
	b := newBench(t).sudo("65534")
	home := filepath.Join(b.dir, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	b.Report = filepath.Join(home, "report.json")
	got := b.sh(t, b.call(t, "dial", "203.0.113.9:4711")+"; "+b.call(t, "dial", "203.0.113.9:4711")+"; exit 3")
	if !strings.Contains(got.stderr, "2 × 203.0.113.9:4711/tcp, ") || got.code != 3 {
		t.Errorf("got %+v", got)
	}
	text, err := os.ReadFile(b.Report)
	if err != nil {
		t.Fatal(err)
	}
	var report Result
	if err := json.Unmarshal(text, &report); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if len(report.Denied) != 1 || report.Denied[0].Address != "203.0.113.9" || report.Denied[0].Count != 2 ||
		report.ExitCode != 3 || report.Command[0] != "sh" || report.Duration <= 0 || report.Lost != 0 {
		t.Errorf("got %s", text)
	}
	if info, err := os.Stat(b.Report); err != nil || info.Sys().(*syscall.Stat_t).Uid != 65534 {
		t.Errorf("owner: %v, %v", info, err)
	}

	// A directory in which the user may not write, reached by a link of the user's.
	b.Report = filepath.Join(home, "link", "report.json")
	if err := os.Symlink("/etc", filepath.Join(home, "link")); err != nil {
		t.Fatal(err)
	}
	if got := b.run(t, "true"); got.code != CodeFailed || !strings.HasSuffix(got.stderr, "permission denied\n") {
		t.Errorf("through a link: %+v", got)
	}
}

func TestQuietWhenNothingIsDenied(t *testing.T) {
	b := newBench(t)
	if got := b.run(t, "true"); got.stderr != "" {
		t.Errorf("said %q", got.stderr)
	}
}

func TestPrivileges(t *testing.T) {
	for _, test := range []struct {
		name, uid   string
		user        string
		asRoot      bool
		ids, groups string
		caps        string
	}{
		{name: "root", ids: "0", caps: "00000000a00405fb"},
		{name: "sudo", uid: "65534", ids: "65534", groups: "65534", caps: "0000000000000000"},
		{name: "user", user: "daemon:65534", ids: "1", groups: "65534", caps: "0000000000000000"},
		{name: "user under sudo", uid: "65534", user: "1", ids: "1", groups: "1", caps: "0000000000000000"},
		{name: "as root", uid: "65534", asRoot: true, ids: "0", caps: "00000000a00405fb"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			if test.uid != "" {
				b.sudo(test.uid)
			}
			b.User, b.AsRoot = test.user, test.asRoot
			got := b.run(t, "cat", "/proc/self/status")
			status := map[string]string{}
			for line := range strings.Lines(got.stdout) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
				status[key] = strings.Join(strings.Fields(value), " ")
			}
			want := map[string]string{
				"Uid": strings.Join(slices.Repeat([]string{test.ids}, 4), " "), "Groups": test.groups,
				"CapInh": "0000000000000000", "CapAmb": "0000000000000000",
				"CapPrm": test.caps, "CapEff": test.caps, "CapBnd": test.caps,
				"NoNewPrivs": "1", "Seccomp": "2", "SigIgn": ignored(t), "SigBlk": "0000000000000000",
			}
			for key, value := range want {
				if status[key] != value {
					t.Errorf("%s is %q, want %q", key, status[key], value)
				}
			}
			if warned := strings.Contains(got.stderr, "warning: the command runs as root"); warned != test.asRoot {
				t.Errorf("said %q", got.stderr)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	b := newBench(t).sudo("65534")
	b.Environ = append(b.Environ, "KEPT=yes", "MAIL=/var/mail/root")
	lines := strings.Split(b.run(t, "env").stdout, "\n")
	for _, want := range []string{"KEPT=yes", "HOME=/nonexistent", "USER=nobody", "LOGNAME=nobody"} {
		if !slices.Contains(lines, want) {
			t.Errorf("%s is missing of %q", want, lines)
		}
	}
	for _, line := range lines {
		if strings.HasPrefix(line, "SUDO_") || strings.HasPrefix(line, "MAIL=") || line == "HOME=/root" {
			t.Errorf("%s is left", line)
		}
	}
}

// Only the standard files go in.
func TestFiles(t *testing.T) {
	b := newBench(t)
	secret, err := os.Open("/etc/shadow")
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	if _, err := unix.FcntlInt(secret.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.CloseOnExec(int(secret.Fd()))
	got := b.sh(t, "ls /proc/$$/fd")
	for _, fd := range strings.Fields(got.stdout) {
		if !slices.Contains([]string{"0", "1", "2", "10", "255"}, fd) { // the last two are shells' own
			t.Errorf("file %s is open inside: %q", fd, got.stdout)
		}
	}
}

// lingering starts a process that has left its session and its parent, and one in the background, which write to a file.
const lingering = `(setsid sh -c 'while :; do echo x >>"$0"; sleep 0.01; done' "$F" </dev/null >/dev/null 2>&1 &)
sh -c 'while :; do echo x >>"$0"; sleep 0.01; done' "$F" </dev/null >/dev/null 2>&1 &
while ! test -s "$F"; do sleep 0.01; done
`
