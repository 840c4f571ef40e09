// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// audit records who changed what, one JSON object a line. What an administrator asks for is recorded before it is done,
// and its outcome after: a change that cannot be recorded is not made.
type audit struct {
	path string // empty: among the log
	log  *slog.Logger
	mu   sync.Mutex
}

// record writes a line. The file is opened for each, so that it may be rotated at any time.
func (a *audit) record(what string, attrs ...slog.Attr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.path == "" {
		a.log.LogAttrs(context.Background(), slog.LevelInfo, "audit", append([]slog.Attr{slog.String("what", what)}, attrs...)...)
		return nil
	}
	f, err := os.OpenFile(a.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("audit_file %s: %w", a.path, plain(err))
	}
	line := slog.NewRecord(time.Now(), slog.LevelInfo, what, 0)
	line.AddAttrs(attrs...)
	err = slog.NewJSONHandler(f, &slog.HandlerOptions{ReplaceAttr: auditKeys}).Handle(context.Background(), line)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("audit_file %s: %w", a.path, plain(err))
	}
	return nil
}

// note records what has happened already, so that a failure can only be told of.
func (a *audit) note(what string, attrs ...slog.Attr) {
	if err := a.record(what, attrs...); err != nil {
		a.log.Error("a change is not in the audit log", "what", what, "err", err)
	}
}

// auditKeys calls slog's message what it is here, and leaves out its level.
func auditKeys(groups []string, a slog.Attr) slog.Attr {
	switch {
	case len(groups) > 0:
	case a.Key == slog.LevelKey:
		return slog.Attr{}
	case a.Key == slog.MessageKey:
		a.Key = "what"
	}
	return a
}
