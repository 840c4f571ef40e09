// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
)

// lead puts the program of h before all others. What a crash leaves of it, Open removes.
func (d *Datapath) lead(l leader, h hook, r bpfAttachment, id string) (err error) {
	twin, err := d.twin(h.program)
	if err != nil {
		return err
	}
	pending := d.pins.pending(id)
	if err := d.ours.unpin(pending); err != nil { // what the last time could not be removed
		return errors.Join(err, closeBPF(twin))
	}
	if err := os.Mkdir(pending, 0o700); err != nil {
		return errors.Join(fmt.Errorf("pin directory: %w", err), closeBPF(twin))
	}
	err = l.lead(h, d.pins.attached(id), pending, twin, r)
	return errors.Join(err, d.ours.unpin(pending), closeBPF(twin))
}

// twin loads a program once more, with the same maps.
func (d *Datapath) twin(program *ebpf.Program) (*ebpf.Program, error) {
	for name, field := range fields[ebpf.Program](&d.bpf.bpfPrograms) {
		if *field != program || program == nil {
			continue
		}
		spec, err := d.config.spec()
		if err != nil {
			return nil, err
		}
		unpinned(spec)
		shared := make(map[string]*ebpf.Map)
		for name, m := range fields[ebpf.Map](&d.bpf.bpfMaps) {
			shared[name] = *m
		}
		one, err := ebpf.NewCollectionWithOptions(
			&ebpf.CollectionSpec{
				Maps: spec.Maps, Variables: spec.Variables, Types: spec.Types, ByteOrder: spec.ByteOrder,
				Programs: map[string]*ebpf.ProgramSpec{name: spec.Programs[name]},
			},
			ebpf.CollectionOptions{MapReplacements: shared},
		)
		if err != nil {
			return nil, fmt.Errorf("load program %s once more: %w", name, err)
		}
		defer closeCollection(one)
		return one.DetachProgram(name), nil
	}
	return nil, errOnlyCgroups
}
