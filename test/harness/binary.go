// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/netfence/netfence/internal/testenv"
)

// BinaryEnv names a netfenced that is there already. Without it one is built.
const BinaryEnv = "NETFENCE_TEST_BINARY"

var (
	mu    sync.Mutex // guards built
	built string     // directory of the programs that this process built
)

// suite removes what was built. A suite that is killed leaves it in the directory for temporary files.
type suite struct{ testenv.Runner }

func (s suite) Run() int {
	code := s.Runner.Run()
	mu.Lock()
	defer mu.Unlock()
	if built == "" {
		return code
	}
	if err := os.RemoveAll(built); err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		return max(code, 1)
	}
	return code
}

// binary is netfenced.
func binary(t testenv.TB) string {
	t.Helper()
	if path := os.Getenv(BinaryEnv); path != "" {
		return path
	}
	return Build(t, "netfenced")
}

// Build builds a command of cmd, once for all tests of a package, with the race detector if they have it, else as it is
// released: without cgo some system calls reach all threads that with it do not.
func Build(t testenv.TB, command string) string {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	if built == "" {
		dir, err := os.MkdirTemp("", "netfence-build-")
		if err != nil {
			t.Fatalf("build %s: %v", command, err)
		}
		built = dir
	}
	path := filepath.Join(built, command)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	args := []string{"build", "-o", path}
	if race {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "github.com/netfence/netfence/cmd/"+command)...)
	if !race {
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
	}
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("build %s: %v\n%s", command, err, out)
	}
	return path
}
