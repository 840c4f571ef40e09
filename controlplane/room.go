// SPDX-License-Identifier: Apache-2.0

package controlplane

import "strings"

// roomSize is how many attachments of a SyncRequest are kept together. One that stays keeps the room of them all.
const roomSize = 16

// room is where a few attachments are kept, and what is said of them. What lives for days is kept apart from the message
// that brought it, and in few pieces: between what is thrown away with the message it would hold on to pages of the heap
// that are empty otherwise, half as much again.
type room struct {
	text   string // ids, targets and DNS addresses, one after the other
	labels labels // with room for those of all
	places []attachment
	size   int
}

func newRoom[T told](of []T) *room {
	var text strings.Builder
	n, metadata := 0, 0
	for _, m := range of {
		metadata += len(m.GetMetadata())
		n += len(m.GetId()) + len(m.GetTarget()) + len(m.GetDnsAddress())
	}
	text.Grow(n)
	for _, m := range of {
		text.WriteString(m.GetId())
		text.WriteString(m.GetTarget())
		text.WriteString(m.GetDnsAddress())
	}
	return &room{text: text.String(), labels: make(labels, 0, metadata), size: len(of)}
}

// next is the text of m, which must be the next of the messages that the room was made for.
func (r *room) next(m told) (text string) {
	n := len(m.GetId()) + len(m.GetTarget()) + len(m.GetDnsAddress())
	text, r.text = r.text[:n], r.text[n:]
	return text
}

// metadata are those of a message that the room was made for.
func (r *room) metadata(m told) labels {
	begin := len(r.labels)
	r.labels = r.labels.add(m.GetMetadata())
	return r.labels[begin:len(r.labels):len(r.labels)]
}

// place is one for a new attachment.
func (r *room) place() *attachment {
	if r.places == nil {
		r.places = make([]attachment, r.size)
	}
	a := &r.places[0]
	r.places = r.places[1:]
	return a
}
