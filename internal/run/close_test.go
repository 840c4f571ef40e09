// SPDX-License-Identifier: Apache-2.0

package run

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/netfence/netfence/policy"
)

// spyFence notes that it was ended.
type spyFence struct{ closed bool }

func (f *spyFence) pins() string                                          { return "" }
func (f *spyFence) prepare()                                              {}
func (f *spyFence) enforce(context.Context, string, *policy.Policy) error { return nil }
func (f *spyFence) close() error {
	f.closed = true
	return nil
}

// Processes that can not be killed stay filtered, and the entry says where they are.
func TestTheFilterOutlastsWhatCanNotBeKilled(t *testing.T) {
	runDir, cgroupDir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(cgroupDir, "cgroup.events"), []byte("populated 1\nfrozen 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(cgroupDir, "cgroup.kill"), 0o700); err != nil { // not to be written to
		t.Fatal(err)
	}
	dir, err := os.Open(cgroupDir)
	if err != nil {
		t.Fatal(err)
	}
	entry, err := enlist(runDir, "x")
	if err != nil {
		t.Fatal(err)
	}
	f := &spyFence{}
	s := &session{signals: catchSignals(), fence: f, cgroup: &cgroup{path: cgroupDir, dir: dir}, entry: entry}
	if err := s.close(); err == nil {
		t.Error("closed without an error")
	}
	if f.closed {
		t.Error("the filter ended before the processes")
	}
	if _, err := os.Stat(filepath.Join(registry(runDir), "x")); err != nil {
		t.Errorf("the sweep finds nothing: %v", err)
	}
}
