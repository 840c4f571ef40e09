// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/internal/pki"
)

// holder is who has a token.
type holder struct {
	name string
	sum  [sha256.Size]byte // of the token
	read bool              // may look, and change nothing
}

// tokens of a file: lines of NAME sha256:HEX, of administrators with a third word: read. The tokens are random, so a plain
// hash gives nothing away; see NewToken.
type tokens []holder

func openTokens(log *slog.Logger, path string, roles bool) (*files[tokens], error) {
	return open(log, func(contents [][]byte) (tokens, error) {
		list, err := parseTokens(contents[0], roles)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return list, nil
	}, path)
}

func parseTokens(data []byte, roles bool) (tokens, error) {
	var list tokens
	lines := bufio.NewScanner(bytes.NewReader(data))
	for number := 1; lines.Scan(); number++ {
		words := strings.Fields(lines.Text())
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		h := holder{read: roles && len(words) == 3 && words[2] == "read"}
		if len(words) != 2 && !h.read {
			return nil, fmt.Errorf("line %d: want NAME sha256:HEX (`netfence-control token` writes them)", number)
		}
		text, ok := strings.CutPrefix(words[1], "sha256:")
		sum, err := hex.DecodeString(text)
		if !ok || err != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("line %d: %q is not sha256: and 64 hexadecimal digits", number, words[1])
		}
		h.name = words[0]
		copy(h.sum[:], sum)
		list = append(list, h)
	}
	return list, lines.Err()
}

// find tells whose token it is. It takes as long whoever's it is.
func (t tokens) find(token string) (holder, bool) {
	sum := sha256.Sum256([]byte(token))
	var found holder
	matches := 0
	for _, h := range t {
		if subtle.ConstantTimeCompare(sum[:], h.sum[:]) == 1 {
			found, matches = h, matches+1
		}
	}
	return found, matches > 0 && token != ""
}

// holds tells whether it is a token of that name; a name may have several, to rotate them.
func (t tokens) holds(name, token string) bool {
	sum := sha256.Sum256([]byte(token))
	held := 0
	for _, h := range t {
		if h.name == name {
			held |= subtle.ConstantTimeCompare(sum[:], h.sum[:])
		}
	}
	return held == 1 && token != ""
}

// NewToken makes a token for name, and adds its line to the file. A daemon's name is its daemon_id.
func NewToken(path, name string, read bool) (string, error) {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' }) || strings.HasPrefix(name, "#") {
		return "", fmt.Errorf("token: %q is not a name", name)
	}
	token := rand.Text() + rand.Text() // 260 bits
	sum := sha256.Sum256([]byte(token))
	line := name + " sha256:" + hex.EncodeToString(sum[:])
	if read {
		line += " read"
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return "", fmt.Errorf("token: %s: %w", path, plain(err))
	}
	_, err = f.WriteString(line + "\n")
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return "", fmt.Errorf("token: %s: %w", path, plain(err))
	}
	return token, nil
}

// gate admits daemons.
type gate struct {
	open   bool
	tokens *files[tokens] // nil: none
	names  []string
	lists  func() *pki.Lists // of revoked certificates; nil: none
}

// authorize is controlplane.Options.Authorize.
func (g *gate) authorize(_ context.Context, p controlplane.Peer) error {
	if g.lists != nil && p.TLS != nil {
		if err := g.lists().Revoked(p.TLS.VerifiedChains); err != nil {
			return status.Error(codes.Unauthenticated, err.Error())
		}
	}
	if g.open {
		return nil
	}
	if g.tokens != nil && p.Token != "" && g.tokens.get().holds(p.DaemonID, p.Token) {
		return nil
	}
	shown := p.Names()
	for _, name := range g.names {
		if slices.Contains(shown, strings.ReplaceAll(name, "{daemon_id}", p.DaemonID)) {
			return nil
		}
	}
	switch {
	case p.Token != "" && g.tokens != nil:
		return status.Errorf(codes.Unauthenticated, "the token is not that of daemon %q", p.DaemonID)
	case len(shown) > 0:
		return status.Errorf(codes.Unauthenticated, "the certificate is for %s, not for daemon %q", strings.Join(shown, ", "), p.DaemonID)
	default:
		return status.Errorf(codes.Unauthenticated, "daemon %q shows no token and no certificate", p.DaemonID)
	}
}
