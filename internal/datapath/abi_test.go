// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// listing is every path below dir.
func listing(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// What this build does not know, or nobody could have left, stays as it is.
func TestABIsThatAreLeftAlone(t *testing.T) {
	for name, tt := range map[string]struct {
		versions []string
		says     string
	}{
		"newer":             {[]string{"v4"}, "newer netfenced"},
		"newer too":         {[]string{"v3", "v10"}, "newer netfenced"},
		"too old":           {[]string{"v0"}, "too old"},
		"two that it knows": {[]string{"v1", "v2"}, "two ABIs, v1 and v2"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := pinDir(t)
			for _, v := range tt.versions {
				if err := os.MkdirAll(filepath.Join(dir, v, linksDir), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			before := listing(t, dir)
			if _, err := openRenewed(Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("opened: %v", err)
			}
			if after := listing(t, dir); !slices.Equal(before, after) {
				t.Errorf("pins %v, were %v", after, before)
			}
		})
	}
}

// A map that is not what this build would make is named, and nothing is written: neither to it nor to those beside it.
func TestForeignMapsAreNamed(t *testing.T) {
	array := func(name string, value uint32) *ebpf.MapSpec {
		return &ebpf.MapSpec{Name: name, Type: ebpf.Array, KeySize: 4, ValueSize: value, MaxEntries: maxAttachments}
	}
	for name, tt := range map[string]struct {
		pin  string
		spec *ebpf.MapSpec
		says string
	}{
		"under a name of its own":     {"theirs", array("theirs", 8), "no map of this netfenced"},
		"in the place of one of ours": {bpfMapNfWords, array("theirs", 8), `a map named "theirs"`},
		"of another layout":           {bpfMapNfWords, array(bpfMapNfWords, 16), "ValueSize: 16 changed to 8"},
	} {
		for _, version := range []int{oldestABI, abi} {
			t.Run(name, func(t *testing.T) {
				dir := pinDir(t)
				theirs, err := ebpf.NewMap(tt.spec)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = closeBPF(theirs) }()
				place := filepath.Join(pins(dir).version(version), mapsDir)
				if err := os.MkdirAll(place, 0o700); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(place, tt.pin)
				if err := theirs.Pin(path); err != nil {
					t.Fatal(err)
				}
				before := listing(t, dir)
				if _, err := openRenewed(Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), path) {
					t.Errorf("opened: %v", err)
				}
				if after := listing(t, dir); !slices.Equal(before, after) {
					t.Errorf("pins %v, were %v", after, before)
				}
				empty(t, theirs)
			})
		}
	}
}

// empty fails if somebody has written to an array.
func empty(t *testing.T, m *ebpf.Map) {
	t.Helper()
	value := make([]byte, m.ValueSize())
	for key := range m.MaxEntries() {
		if err := m.Lookup(key, &value); err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(value, func(b byte) bool { return b != 0 }) {
			t.Fatalf("entry %d holds %x", key, value)
		}
	}
}

// An attachment whose map somebody unpinned goes on as it is: an empty map in its place would be another policy.
func TestMissingMapIsNotReplaced(t *testing.T) {
	dir := pinDir(t)
	d, err := openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	tg := vethTarget(t, "v0")
	attachOnly(t, d, tg)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Remove(filepath.Join(pins(dir).maps(), bpfMapNfWords)); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dir)
	if _, err := openRenewed(Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "map nf_words is gone") {
		t.Errorf("opened: %v", err)
	}
	if after := listing(t, dir); !slices.Equal(before, after) {
		t.Errorf("pins %v, were %v", after, before)
	}
}

// What is taken over is laid out as it was; what this build adds is not asked of those before it.
func TestOldestMapsAreThoseOfABI1(t *testing.T) {
	old := abi1(t)
	now, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	pinned := func(spec *ebpf.CollectionSpec) []string { return unpinned(spec.Copy()) }
	if got := pinned(old); !slices.Equal(got, slices.Sorted(slices.Values(oldestMaps))) {
		t.Errorf("oldestMaps are %v, ABI 1 pins %v", oldestMaps, got)
	}
	for _, name := range oldestMaps {
		was, is := old.Maps[name], now.Maps[name]
		if is == nil || is.Pinning != ebpf.PinByName {
			t.Errorf("%s is pinned no more", name)
			continue
		}
		if was.Type != is.Type || was.KeySize != is.KeySize || was.ValueSize != is.ValueSize || was.MaxEntries != is.MaxEntries || was.Flags != is.Flags {
			t.Errorf("%s was %v, is %v", name, was, is)
		}
		if in, now := was.InnerMap, is.InnerMap; in != nil && (in.KeySize != now.KeySize || in.ValueSize != now.ValueSize || in.Flags != now.Flags) {
			t.Errorf("%s held %v, holds %v", name, in, now)
		}
	}
}
