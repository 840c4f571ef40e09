// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// abi names the layout of what is pinned. It grows when an older daemon would misread it, or does not
// know all of it. Pins of oldestABI and later are taken over: a map keeps its layout for as long as an
// ABI that has it is, and what is new gets new maps.
const (
	abi       = 3
	oldestABI = 1
)

// oldestMaps are those of oldestABI: whoever has attached anything has pinned them.
var oldestMaps = []string{
	bpfMapNfAttachments, bpfMapNfCgroups, bpfMapNfClauses, bpfMapNfCounters, bpfMapNfDns, bpfMapNfDnsFlows,
	bpfMapNfDnsSockets, bpfMapNfDrops, bpfMapNfExempt, bpfMapNfFlowCounts, bpfMapNfFlows, bpfMapNfInterfaces,
	bpfMapNfLearned, bpfMapNfMeta, bpfMapNfNames, bpfMapNfSlots, bpfMapNfTables, bpfMapNfWords,
}

func (p pins) version(abi int) string { return filepath.Join(string(p), "v"+strconv.Itoa(abi)) }

// pinned returns the ABI of what is pinned, this build's if nothing is. Beside a newer one nobody
// may run: what it filters stays filtered, and only a daemon that knows it can change that.
func (p pins) pinned() (version int, err error) {
	entries, err := os.ReadDir(string(p))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("pin directory: %w", err)
	}
	for _, e := range entries {
		found, ok := abiOf(e.Name())
		switch {
		case !ok:
			continue
		case found > abi:
			return 0, fmt.Errorf("pin directory %s: holds the attachments of a newer netfenced (ABI v%d, this one knows v%d); start the newer one, or end them with its `netfenced detach --all`", string(p), found, abi)
		case found < oldestABI:
			return 0, fmt.Errorf("pin directory %s: holds the attachments of a netfenced that is too old (ABI v%d, this one takes over from v%d on); start a version in between, or end them with `netfenced detach --all`", string(p), found, oldestABI)
		case version != 0: // no upgrade leaves both: it renames
			return 0, fmt.Errorf("pin directory %s: holds the attachments of two ABIs, v%d and v%d; move away what is not Netfence's, or end both with `netfenced detach --all`", string(p), version, found)
		}
		version = found
	}
	if version == 0 {
		version = abi
	}
	return version, nil
}

func abiOf(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, "v")
	if !ok {
		return 0, false
	}
	version, err := strconv.Atoi(digits)
	return version, err == nil
}

// takeOver makes the pins of an older ABI this one's, in one step that a daemon of before sees as
// newer pins. Maps and links stay what they are.
func (p pins) takeOver(version int) error {
	if version == abi {
		return nil
	}
	if err := unix.Renameat2(unix.AT_FDCWD, p.version(version), unix.AT_FDCWD, p.base(), unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("take over pins of ABI v%d in %s: %w", version, string(p), err)
	}
	return nil
}
