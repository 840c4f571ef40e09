// SPDX-License-Identifier: Apache-2.0

package controlplane

import "unique"

// labels are the metadata of an attachment, which says the same as that of many others: each text is held once.
type labels []label

type label struct{ key, value unique.Handle[string] }

// add appends those of a message.
func (l labels) add(metadata map[string]string) labels {
	for key, value := range metadata {
		l = append(l, label{unique.Make(key), unique.Make(value)})
	}
	return l
}

// metadata is a map of the reader's own.
func (l labels) metadata() map[string]string {
	m := make(map[string]string, len(l))
	for _, label := range l {
		m[label.key.Value()] = label.value.Value()
	}
	return m
}

// equal tells whether they are these, and no others.
func (l labels) equal(metadata map[string]string) bool {
	return len(l) == len(metadata) && l.match(metadata)
}

// match tells whether all of want are among them.
func (l labels) match(want map[string]string) bool {
	found := 0
	for _, label := range l {
		if value, ok := want[label.key.Value()]; ok && value == label.value.Value() {
			found++
		}
	}
	return found == len(want)
}

// size is about what they would take alone.
func (l labels) size() (n int) {
	for _, label := range l {
		n += 64 + len(label.key.Value()) + len(label.value.Value())
	}
	return n
}
