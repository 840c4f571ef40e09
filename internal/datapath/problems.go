// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// problems are what an operator should look at, until it is over.
type problems struct {
	log *slog.Logger
	mu  sync.Mutex
	// by what they are about: a path, or an attachment and a hook
	texts map[string]string
}

// Problems lists what Netfence found in the kernel that it did not put there, and what it lost.
func (d *Datapath) Problems() []string {
	p := &d.problems
	p.mu.Lock()
	texts := slices.Sorted(maps.Values(p.texts))
	p.mu.Unlock()
	aside, err := os.ReadDir(filepath.Join(d.pins.base(), foreignDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // which is how it nearly always is
		texts = append(texts, fmt.Sprintf("pins that were in the way: %v", err))
	}
	for _, e := range aside {
		texts = append(texts, fmt.Sprintf("pin %s is not Netfence's and was in the way (move it to where it belongs)",
			filepath.Join(d.pins.base(), foreignDir, e.Name())))
	}
	return texts
}

// note logs a problem when it is new.
func (p *problems) note(about, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.texts[about] == text {
		return
	}
	if p.texts == nil {
		p.texts = make(map[string]string)
	}
	p.texts[about] = text
	p.log.Error("not as it was left", "problem", text)
}

func (p *problems) over(about string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.texts, about)
}

// forget drops those of an attachment that is gone.
func (p *problems) forget(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.texts, func(about, _ string) bool { return strings.Contains(about, id+"/") })
}
