// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Resolver is a program that asks for a name as workloads do.
type Resolver string

// The resolvers.
const (
	Glibc      Resolver = "glibc"
	Musl       Resolver = "musl" // over UDP only
	GoResolver Resolver = "go"
	Dig        Resolver = "dig"
	Nslookup   Resolver = "nslookup" // busybox's, over UDP only
)

// Lookup is one question of a resolver.
type Lookup struct {
	By     Resolver
	Server string // address of the nameserver
	Name   string
	IPv6   bool // asks for AAAA, else A
	TCP    bool
	// Conf is all of its /etc/resolv.conf, instead of Server and TCP, and the name is as a user types it.
	Conf string
	// What only dig can: another type ("HTTPS"), another port than 53, and from where.
	Type string
	Port uint16
	From netip.AddrPort
	// Wait is how long the resolver waits for its answer, in whole seconds; 0 means Patience. It asks once.
	Wait time.Duration
}

func (l Lookup) String() string {
	if l.Conf != "" {
		return fmt.Sprintf("%s asks for %s by %q", l.By, l.Name, l.Conf)
	}
	s := fmt.Sprintf("%s asks %s for %s", l.By, l.Server, l.Name)
	if l.TCP {
		s += " over TCP"
	}
	return s
}

// Answer is what a resolver made of it.
type Answer struct {
	Addrs []netip.Addr
	// Unknown is set when the name does not exist or has no such address. An answer without it and without addresses
	// is that the resolver got none, or an error.
	Unknown bool
	// Text is all that the program said.
	Text string
	// What only dig tells: "NOERROR", "timed out"; the text of the Extended DNS Error.
	Status, Extended string
}

// Failed is set when the resolver would have to ask again to know.
func (a Answer) Failed() bool { return len(a.Addrs) == 0 && !a.Unknown }

func (a Answer) String() string { return strings.TrimSpace(a.Text) }

// Resolve runs the resolver to its end in the network namespace and the cgroup; either may be nil. It has an
// /etc/resolv.conf of its own. The error is that it could not be run.
func Resolve(t TB, ns *NS, cg *Cgroup, l Lookup) (Answer, error) {
	t.Helper()
	if l.Wait == 0 {
		l.Wait = Patience
	}
	command, err := l.command()
	if err != nil {
		return Answer{}, err
	}
	// It has to start, and one that opens a connection waits longer for that than for answers.
	ctx, cancel := context.WithTimeout(t.Context(), 2*l.Wait+Patience)
	defer cancel()
	said, err := runWithResolvConf(ctx, command, l.resolvConf(), ns, cg)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() < 0 && ctx.Err() == nil) {
		return Answer{}, fmt.Errorf("%s: %w", l, err)
	}
	return l.parse(said), nil
}

// MustResolve is Resolve that has to run. It is for the test's own goroutine.
func MustResolve(t TB, ns *NS, cg *Cgroup, l Lookup) Answer {
	t.Helper()
	a, err := Resolve(t, ns, cg, l)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return a
}

func (l Lookup) seconds() string { return strconv.Itoa(max(1, int(l.Wait/time.Second))) }

func (l Lookup) resolvConf() string {
	if l.Conf != "" {
		return l.Conf + "options attempts:1 timeout:" + l.seconds() + "\n"
	}
	options := "options attempts:1 timeout:" + l.seconds()
	if l.TCP {
		options += " use-vc"
	}
	return "nameserver " + l.Server + "\n" + options + "\n"
}

func (l Lookup) command() ([]string, error) {
	family, qtype := "4", "A"
	if l.IPv6 {
		family, qtype = "6", "AAAA"
	}
	switch l.By {
	case Glibc, Musl:
		program, err := Getaddrinfo(l.By)
		return []string{program, family, l.Name}, err
	case GoResolver:
		name := l.Name
		if l.Conf == "" {
			name += "." // or Go asks for the name below the machine's own domain as well
		}
		return []string{string(GoResolver), family, name}, nil
	case Dig:
		if l.Conf != "" {
			return []string{"dig", l.Name, qtype, "+search"}, nil
		}
		args := []string{"dig", "@" + l.Server, l.Name, qtype, "+tries=1", "+time=" + l.seconds()}
		if l.Type != "" {
			args[3] = l.Type
		}
		if l.TCP {
			args = append(args, "+tcp")
		}
		if l.Port != 0 {
			args = append(args, "-p", strconv.Itoa(int(l.Port)))
		}
		if l.From.IsValid() {
			args = append(args, "-b", fmt.Sprintf("%s#%d", l.From.Addr(), l.From.Port()))
		}
		return args, nil
	case Nslookup:
		args := []string{"busybox", "nslookup", "-type=" + qtype, l.Name}
		if l.Conf == "" {
			args = append(args, l.Server)
		}
		return args, nil
	}
	return nil, fmt.Errorf("unknown resolver %q", l.By)
}

func (l Lookup) parse(said string) Answer {
	a := Answer{Text: said}
	answers := l.By != Nslookup
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		fields := strings.Fields(line)
		switch {
		case line == "noname", strings.Contains(line, "NXDOMAIN"), strings.Contains(line, "status: NOERROR"), strings.HasPrefix(line, "Non-authoritative"):
			a.Unknown = true // unless addresses follow
		case strings.HasPrefix(line, "Name:"):
			answers = true // what nslookup says before is about the server
		}
		if i := strings.Index(line, "status: "); i >= 0 {
			a.Status, _, _ = strings.Cut(line[i+len("status: "):], ",")
		}
		if strings.Contains(line, "timed out") {
			a.Status = "timed out"
		}
		if _, text, ok := strings.Cut(line, "; EDE: "); ok {
			a.Extended = text
		}
		if len(fields) == 0 || strings.HasPrefix(line, ";") || !answers {
			continue
		}
		if l.By == Dig && (len(fields) < 5 || fields[3] != "A" && fields[3] != "AAAA") {
			continue // a CNAME, say
		}
		if addr, err := netip.ParseAddr(fields[len(fields)-1]); err == nil && addr.Is4() != l.IPv6 {
			a.Addrs = append(a.Addrs, addr)
		}
	}
	slices.SortFunc(a.Addrs, netip.Addr.Compare)
	a.Unknown = a.Unknown && len(a.Addrs) == 0
	return a
}

// inResolvConf runs a command with the file as its /etc/resolv.conf: it is started in a mount namespace of its own.
// Without a command it asks by Go's own resolver. It is a process rather than a thread of this one, because threads have
// no way back out of a mount namespace, and one that ends takes along what it ever started.
var inResolvConf = NewFunc("in-resolv-conf", func(args []string) error {
	conf, command := args[0], args[1:]
	if err := unix.Mount(conf, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s on /etc/resolv.conf: %w", conf, err)
	}
	if command[0] == string(GoResolver) {
		return goLookup(command[1], command[2])
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	return &os.PathError{Op: "exec", Path: path, Err: unix.Exec(path, command, os.Environ())}
})

// goLookup says what getaddrinfo.c says.
func goLookup(family, name string) error {
	resolver := net.Resolver{PreferGo: true}
	addrs, err := resolver.LookupNetIP(context.Background(), "ip"+family, name)
	var failed *net.DNSError
	switch {
	case errors.As(err, &failed) && failed.IsNotFound:
		fmt.Println("noname")
	case err != nil:
		fmt.Println(err)
	}
	for _, addr := range addrs {
		fmt.Println(addr.Unmap())
	}
	return nil
}

// runWithResolvConf runs a command to its end and returns what it said. Its /etc/resolv.conf holds text.
func runWithResolvConf(ctx context.Context, command []string, text string, ns *NS, cg *Cgroup) (string, error) {
	dir, err := os.MkdirTemp("", "netfence-resolv-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	conf := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return "", err
	}
	var said bytes.Buffer
	cmd := inResolvConf.Command(append([]string{conf}, command...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS} // private, then
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := start(cmd, ns, cg); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	err = cmd.Wait()
	if text, ok := strings.CutPrefix(said.String(), inResolvConf.name+": "); ok {
		return "", errors.New(text) // the command was not run
	}
	return said.String(), err
}
