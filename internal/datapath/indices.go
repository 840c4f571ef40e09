// SPDX-License-Identifier: Apache-2.0

package datapath

import "fmt"

// wornGeneration is from when on an index is not given out again: what it has left
// is for the attachment that has it.
const wornGeneration = 1 << 31

// indices are the places of attachments that nobody has, the one that was given
// back first in front. Datapath.mu guards them.
type indices struct {
	free []uint32
	// cooling are those that packets in flight may still be judged by: a program
	// that has read who it filters reads the word of that index next, and must not
	// find another attachment's.
	cooling []uint32
}

// take returns an index. It waits for grace when all that were free have been given
// out, once for all that are cooling: seldom, and not at all after a start.
func (i *indices) take(grace func() error) (uint32, error) {
	if len(i.free) == 0 && len(i.cooling) > 0 {
		if err := grace(); err != nil {
			return 0, fmt.Errorf("index of an attachment: %w", full(err))
		}
		i.free, i.cooling = i.cooling, nil
	}
	if len(i.free) == 0 {
		return 0, fmt.Errorf("%w: every place for an attachment is taken", ErrFull)
	}
	index := i.free[0]
	i.free = i.free[1:]
	return index, nil
}

// release gives the index of an attachment back whose links are gone.
func (i *indices) release(a *attachment) {
	if generation(a.word) < wornGeneration {
		i.cooling = append(i.cooling, a.index)
	}
}
