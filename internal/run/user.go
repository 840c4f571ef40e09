// SPDX-License-Identifier: Apache-2.0

package run

import (
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/confine"
)

// caller is whom the command runs as.
type caller struct {
	confine.User
	// account has the variables of a login; nil: the user stays, and so do they.
	account *user.User
	// invoker is who gets the report: the same, except that --user changes only the command's.
	invoker confine.User
	warning string
}

// resolveCaller follows --user, --as-root, and the variables that sudo sets.
func resolveCaller(o Options) (caller, error) {
	invoking, err := invoker(o.Environ)
	if err != nil {
		return caller{}, err
	}
	c := caller{User: invoking.User, account: invoking.account, invoker: invoking.User}
	switch {
	case o.User != "":
		named, err := named(o.User)
		if err != nil {
			return caller{}, err
		}
		c.User, c.account = named.User, named.account
	case o.AsRoot && c.UID != 0:
		root, err := unprivileged()
		if err != nil {
			return caller{}, err
		}
		c.User, c.account = root, nil
		c.warning = "the command runs as root: what it writes to this machine's files may later run outside the fence"
	}
	return c, nil
}

// invoker is who called sudo, or this process's own user.
func invoker(environ []string) (caller, error) {
	uid, gid := variable(environ, "SUDO_UID"), variable(environ, "SUDO_GID")
	if uid == "" || uid == "0" {
		root, err := unprivileged()
		return caller{User: root}, err
	}
	if gid == "" {
		return caller{}, errors.New("SUDO_UID is set without SUDO_GID (say --user, or --as-root)")
	}
	c, err := named(uid + ":" + gid)
	if err != nil {
		return caller{}, fmt.Errorf("SUDO_UID: %w", err)
	}
	return c, nil
}

func variable(environ []string, name string) string {
	for _, pair := range slices.Backward(environ) {
		if value, ok := strings.CutPrefix(pair, name+"="); ok {
			return value
		}
	}
	return ""
}

// unprivileged is this process's own user without the groups that are ways out.
func unprivileged() (confine.User, error) {
	groups, err := unix.Getgroups()
	if err != nil {
		return confine.User{}, fmt.Errorf("groups: %w", err)
	}
	u := confine.User{UID: uint32(unix.Getuid()), GID: uint32(unix.Getgid())}
	for _, g := range groups {
		u.Groups = append(u.Groups, uint32(g))
	}
	u.Groups = withoutWaysOut(u.Groups)
	return u, nil
}

// named reads NAME|UID[:GROUP|:GID].
func named(text string) (caller, error) {
	name, group, hasGroup := strings.Cut(text, ":")
	account, err := lookUpUser(name)
	if err != nil {
		return caller{}, err
	}
	uid, err := parseID(account.Uid)
	if err != nil {
		return caller{}, fmt.Errorf("user %s: %w", name, err)
	}
	if hasGroup {
		if account.Gid, err = groupID(group); err != nil {
			return caller{}, err
		}
	}
	gid, err := parseID(account.Gid)
	if err != nil {
		return caller{}, fmt.Errorf("user %s: group: %w (say %s:GROUP)", name, err, name)
	}
	c := caller{User: confine.User{UID: uid, GID: gid}, account: account}
	c.invoker = c.User
	if account.Username == "" {
		return c, nil // a number that no database knows has no groups
	}
	ids, err := account.GroupIds()
	if err != nil {
		return caller{}, fmt.Errorf("groups of user %s: %w", name, err)
	}
	for _, text := range ids {
		id, err := parseID(text)
		if err != nil {
			return caller{}, fmt.Errorf("groups of user %s: %w", name, err)
		}
		c.Groups = append(c.Groups, id)
	}
	c.Groups = withoutWaysOut(c.Groups)
	return c, nil
}

func lookUpUser(name string) (*user.User, error) {
	if _, err := parseID(name); err == nil {
		account, err := user.LookupId(name)
		var unknown user.UnknownUserIdError
		if errors.As(err, &unknown) {
			return &user.User{Uid: name, HomeDir: "/"}, nil
		}
		return account, err
	}
	account, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("user %s: not found", name)
	}
	return account, nil
}

func groupID(name string) (string, error) {
	if _, err := parseID(name); err == nil {
		return name, nil
	}
	group, err := user.LookupGroup(name)
	if err != nil {
		return "", fmt.Errorf("group %s: not found", name)
	}
	return group.Gid, nil
}

// parseID refuses the one that means "leave it as it is" to the kernel.
func parseID(text string) (uint32, error) {
	id, err := strconv.ParseUint(text, 10, 32)
	if err != nil || uint32(id) == ^uint32(0) {
		return 0, fmt.Errorf("%q is no id", text)
	}
	return uint32(id), nil
}

func withoutWaysOut(groups []uint32) []uint32 {
	for _, name := range confine.WayOutGroups() {
		group, err := user.LookupGroup(name)
		if err != nil {
			continue
		}
		if id, err := parseID(group.Gid); err == nil {
			groups = slices.DeleteFunc(groups, func(g uint32) bool { return g == id })
		}
	}
	return groups
}

// environ is what sudo -u would make of an environment.
func (c caller) environ(environ []string) []string {
	drop := []string{"SUDO_COMMAND", "SUDO_GID", "SUDO_HOME", "SUDO_TTY", "SUDO_UID", "SUDO_USER"}
	var set []string
	if c.account != nil {
		name := c.account.Username
		if name == "" {
			name = c.account.Uid
		}
		set = []string{"HOME=" + c.account.HomeDir, "LOGNAME=" + name, "USER=" + name}
		drop = append(drop, "HOME", "LOGNAME", "MAIL", "USER")
	}
	var kept []string
	for _, pair := range environ {
		name, _, _ := strings.Cut(pair, "=")
		if !slices.Contains(drop, name) {
			kept = append(kept, pair)
		}
	}
	return append(kept, set...)
}
