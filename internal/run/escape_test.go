// SPDX-License-Identifier: Apache-2.0

package run

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
)

// outside is what an escape would reach: somebody's process, socket and pins.
type outside struct {
	*bench
	port    string
	reached func() int
	pid     string // of a process of the command's user
	socket  string // of a daemon
	cg      string // where cgroup v2 is mounted
	bpf     string
	// unknown is a socket in no table.
	unknown string
	// policies is a file of the daemon's policy folder.
	policies string
	mount    string // a directory to mount on
}

func newOutside(t *testing.T, uid string) *outside {
	t.Helper()
	o := &outside{bench: newBench(t)}
	if uid != "0" {
		o.sudo(uid)
	}
	o.port, o.reached = listen(t)

	sleep := exec.Command("sleep", "86400.25")
	var id uint32
	if _, err := fmt.Sscan(uid, &id); err != nil {
		t.Fatal(err)
	}
	sleep.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	testenv.Start(t, sleep, nil, nil)
	o.pid = fmt.Sprint(sleep.Process.Pid)

	// In the place of any of the table's.
	dir, err := os.MkdirTemp("/run", "netfence-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	o.socket = filepath.Join(dir, "socket")
	socket, err := net.Listen("unix", o.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	o.unknown = filepath.Join(o.dir, "unknown.sock")
	unknown, err := net.Listen("unix", o.unknown)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unknown.Close() })
	for path, mode := range map[string]os.FileMode{dir: 0o755, o.socket: 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}

	if o.cg, err = target.Cgroup2Mount(); err != nil {
		t.Fatal(err)
	}
	o.bpf = filepath.Dir(o.BPFDir)
	o.PolicyDir = filepath.Join(o.dir, "policies")
	o.policies = filepath.Join(o.PolicyDir, "others.yaml")
	if err := os.Mkdir(o.PolicyDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(o.policies, []byte("mode: block-all\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o.mount = filepath.Join(o.dir, "mount")
	if err := os.Mkdir(o.mount, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(o.mount, 0o777); err != nil {
		t.Fatal(err)
	}
	return o
}

// attempt is how a script ended.
type attempt struct {
	Code   int
	Output string
}

// attempts runs all scripts inside one fence, each in a shell with the names of what is outside.
func (o *outside) attempts(t *testing.T, scripts map[string]string) map[string]attempt {
	t.Helper()
	ipc, err := os.Readlink("/proc/self/ns/ipc")
	if err != nil {
		t.Fatal(err)
	}
	names := fmt.Sprintf("CG=%s PID=%s SOCKET=%s BPF=%s D=%s DIR=%s PORT=%s\n", o.cg, o.pid, o.socket, o.bpf, o.mount, o.dir, o.port)
	names += fmt.Sprintf("IPC='%s' POLICIES=%s UNKNOWN=%s\n", ipc, o.policies, o.unknown)
	names += fmt.Sprintf("dial() { %s; }\nconnect() { env NETFENCE_TEST_FUNC=connect %s $1; }\n",
		o.call(t, "dial", "127.0.0.1:"+o.port), o.self(t))
	text, err := json.Marshal(map[string]any{"names": names, "scripts": scripts})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(o.dir, "scripts")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	got := o.sh(t, o.call(t, "attempt-all", path))
	var results map[string]attempt
	if err := json.Unmarshal([]byte(got.stdout), &results); err != nil || got.code != 0 {
		t.Fatalf("%v\n%+v", err, got)
	}
	return results
}

var _ = testenv.NewFunc("attempt-all", func(args []string) error {
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var todo struct {
		Names   string
		Scripts map[string]string
	}
	if err := json.Unmarshal(text, &todo); err != nil {
		return err
	}
	results := map[string]attempt{}
	for name, script := range todo.Scripts {
		cmd := exec.Command("timeout", "20", "sh", "-c", todo.Names+script)
		output, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			return err
		}
		results[name] = attempt{cmd.ProcessState.ExitCode(), string(output)}
	}
	return json.NewEncoder(os.Stdout).Encode(results)
})

var _ = testenv.NewFunc("connect", func(args []string) error {
	conn, err := net.Dial("unix", args[0])
	if err != nil {
		return err
	}
	return conn.Close()
})

// Each script is a way out, and succeeds if it is one.
var escapes = map[string]string{
	// The cgroup.
	"root cgroup.procs":          `echo $$ >$CG/cgroup.procs`,
	"parent's cgroup.procs":      `echo $$ >$CG/../cgroup.procs`,
	"cgroup below":               `mkdir $CG/below`,
	"cgroup.kill of all":         `echo 1 >$CG/cgroup.kill`,
	"remount cgroup":             `mount -o remount,rw $CG`,
	"remount cgroup bound":       `mount -o remount,bind,rw $CG`,
	"umount cgroup":              `umount $CG`,
	"lazy umount cgroup":         `umount -l $CG`,
	"mount cgroup2":              `mount -t cgroup2 none $D`,
	"bind cgroup":                `mount --bind $CG $D`,
	"cgroup v1, read-write":      `for f in /sys/fs/cgroup/*/cgroup.procs; do echo $$ >$f && exit 0; done; exit 1`,
	"cgroup2 in a userns":        `unshare -UrCm sh -c "mount -t cgroup2 none $D && ls -d $D/*netfence*"`,
	"move up in a userns":        `unshare -UrCm sh -c "mount -t cgroup2 none $D && mkdir -p $D/x && echo \$\$ >$D/x/cgroup.procs && grep -q '0::/\.\.' /proc/self/cgroup"`,
	"send from a child cgroup":   `unshare -UrCm sh -c "mount -t cgroup2 none $D; mkdir $D/x; echo \$\$ >$D/x/cgroup.procs"; dial`,
	"umount in a userns":         `unshare -Urm umount $CG`,
	"remount in a userns":        `unshare -Urm mount -o remount,bind,rw $CG`,
	"see the host's hierarchy":   `test "$(cat /proc/self/cgroup | grep ^0::)" != 0::/`,
	"cgroups of others are seen": `ls -d $CG/netfence* $CG/*.slice $CG/init*`,

	// Namespaces.
	"nsenter mount":         `nsenter -t 1 -m true`,
	"nsenter pid":           `nsenter -t 1 -p true`,
	"nsenter net":           `nsenter -t 1 -n true`,
	"nsenter cgroup":        `nsenter -t 1 -C true`,
	"nsenter in a userns":   `unshare -Ur nsenter -t 1 -m true`,
	"unshare mount":         `unshare -m true`,
	"unshare cgroup":        `unshare -C true`,
	"unshare net":           `unshare -n true`,
	"unshare pid":           `unshare -fp true`,
	"netns without a fence": `unshare -Urn sh -c "ip link set lo up; env NETFENCE_TEST_FUNC=dial $DIR/self 127.0.0.1:$PORT"`,
	"send from a userns":    `unshare -Ur env NETFENCE_TEST_FUNC=dial $DIR/self 127.0.0.1:$PORT`,
	"root of init":          `ls /proc/1/root/`,
	"environment of init":   `cat /proc/1/environ`,
	"memory of init":        `head -c 1 /proc/1/mem`,
	"program of init":       `head -c 1 /proc/1/exe`,
	"files of init":         `readlink /proc/1/fd/* || cat /proc/1/fd/*`,
	"kill init":             `kill -KILL 1; kill -TERM 1; kill -INT 1; exit 1`,

	// Processes outside.
	"see processes":        `m=86400; grep -q "$m.25" /proc/[0-9]*/cmdline`,
	"kill outside":         `kill -0 $PID`,
	"another proc":         `ls -d /proc/$PID && grep -qs sleep /proc/$PID/comm`,
	"proc of the outside":  `unshare -m mount -t proc proc $D`,
	"umount proc":          `umount -l /proc`,
	"umount proc, userns":  `unshare -Urm umount /proc`,
	"remount proc/sys":     `mount -o remount,bind,rw /proc/sys`,
	"proc/sys in a userns": `unshare -Urpfm sh -c "umount /proc/sys; mount -o remount,bind,rw /proc/sys; mount -t proc proc $D; echo x >$D/sys/kernel/core_pattern"`,

	// Switches of the kernel.
	"core_pattern":       `echo x >/proc/sys/kernel/core_pattern`,
	"modprobe path":      `echo /bin/true >/proc/sys/kernel/modprobe`,
	"ip_forward":         `echo 1 >/proc/sys/net/ipv4/ip_forward`,
	"sysrq":              `echo h >/proc/sysrq-trigger`,
	"uevent_helper":      `echo /bin/true >/sys/kernel/uevent_helper`,
	"sysfs":              `echo x >/sys/power/state`,
	"remount sysfs":      `mount -o remount,bind,rw /sys`,
	"sysfs in a userns":  `unshare -Urnm sh -c "mount -t sysfs sysfs $D && echo /bin/true >$D/kernel/uevent_helper"`,
	"kcore":              `head -c 1 /proc/kcore | grep -q .`,
	"mknod block":        `mknod $D/disk b 8 0`,
	"mknod char":         `mknod $D/mem c 1 1`,
	"mknod in a userns":  `unshare -Ur mknod $D/disk b 8 0`,
	"disks":              `head -c 1 /dev/vda /dev/sda /dev/nvme0n1`,
	"tun":                `exec 3<>/dev/net/tun && ip tuntap add mode tap name nf0`,
	"new link":           `ip link add nf0 type dummy`,
	"new route":          `ip route add 198.51.100.0/24 dev lo`,
	"time":               `date -s @0`,
	"hostname":           `hostname x`,
	"privileges by sudo": `test "$(id -u)" != 0 && { sudo -n id -u || su -c id; }`,
	"setuid":             `test "$(id -u)" != 0 && test "$($DIR/setuid -u)" = 0`,

	// Files and sockets.
	"pins":                  `test -n "$(ls -A $BPF)"`,
	"bpffs":                 `ls /sys/fs/bpf/*`,
	"mount bpffs":           `mount -t bpf bpf $D`,
	"bpffs in a userns":     `unshare -Urm sh -c "mount -t bpf bpf $D; test -n \"\$(ls -A $D)\""`,
	"bpffs below a bind":    `unshare -Urm sh -c "mount --rbind $(dirname $BPF) $D; test -n \"\$(ls -A $D/$(basename $BPF))\""`,
	"tracefs":               `ls /sys/kernel/tracing/* || ls /sys/kernel/debug/*`,
	"hidden socket":         `test -S $SOCKET || connect $SOCKET`,
	"hidden below a bind":   `unshare -Urm sh -c "mount --bind /run $D && test -S $D/${SOCKET#/run/}"`,
	"hidden below an rbind": `unshare -Urm sh -c "mount --rbind /run $D && test -S $D/${SOCKET#/run/}"`,
	"hidden under a umount": `unshare -Urm sh -c "umount $(dirname $SOCKET); test -S $SOCKET"`,
	"socket of any daemon":  `test "$(id -u)" = 0 && { test -S $UNKNOWN || connect $UNKNOWN; }`,
	"hidden by var":         `test -S /var$SOCKET`,
	"policies of others":    `test -e $POLICIES`,
	"systemd-run":           `ls -A /run/systemd | grep -v resolve`,
	"buses":                 `ls -A /run/dbus/* /run/user/*/*`,
	"shared memory":         `test "$(readlink /proc/self/ns/ipc)" = "$IPC"`,
	"abstract socket":       `connect @netfence-test-$PID`,
}

func TestEscapes(t *testing.T) {
	for name, uid := range map[string]string{"user": "65534", "root": "0"} {
		t.Run(name, func(t *testing.T) {
			o := newOutside(t, uid)
			o.plantSetuid(t)
			if landlockScopes() {
				abstract, err := net.Listen("unix", "@netfence-test-"+o.pid)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { abstract.Close() })
			}
			before := switches(t)
			results := o.attempts(t, escapes)
			for what := range escapes {
				got, tried := results[what]
				if !tried || got.Code == 0 || got.Code == 126 || got.Code == 127 {
					t.Errorf("%s: exit code %d: %s", what, got.Code, got.Output)
				}
			}
			if o.reached() != 0 {
				t.Error("something was sent")
			}
			if after := switches(t); before != after {
				t.Errorf("the kernel has\n%s\nnow, before\n%s", after, before)
			}
		})
	}
}

// plantSetuid leaves a program that would raise whoever runs it.
func (o *outside) plantSetuid(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile("/usr/bin/id")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(o.dir, "setuid")
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
}

// switches are those of the kernel that a script might have changed.
func switches(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, path := range []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/net/ipv4/ip_forward", "/sys/kernel/uevent_helper"} {
		text, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s: %s", path, text)
	}
	return all.String()
}

func landlockScopes() bool {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	return errno == 0 && version >= 6
}
