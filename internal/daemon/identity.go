// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
)

// identity is the file data_dir/daemon_id.
type identity struct {
	DaemonID string `json:"daemon_id"`
	// Machine is derived from the machine-id, which is confidential itself (machine-id(5)).
	Machine string `json:"machine"`
}

// daemonID returns the id that dataDir holds, and mints one where there is none or where the disk is a clone of
// another machine's: two daemons with one id would take the control plane's stream from each other for ever.
func daemonID(dataDir, machineIDPath string) (string, error) {
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return "", fmt.Errorf("data_dir %s: %w", dataDir, cause(err))
	}
	machine, err := machine(machineIDPath)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dataDir, "daemon_id")
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return mint(path, machine)
	case err != nil:
		return "", fmt.Errorf("daemon id %s: %w", path, cause(err))
	}
	var id identity
	if err := json.Unmarshal(data, &id); err != nil || id.DaemonID == "" {
		return "", fmt.Errorf("daemon id %s: unreadable (remove the file to get a new id)", path)
	}
	if id.Machine != machine {
		return mint(path, machine)
	}
	return id.DaemonID, nil
}

// machine is the same for every start on one machine, and says nothing else. A container may have no machine-id; then
// it is empty.
func machine(path string) (string, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("machine id %s: %w", path, cause(err))
	}
	id := strings.TrimSpace(string(data))
	if id == "" || id == "uninitialized" {
		return "", nil
	}
	mac := hmac.New(sha256.New, []byte(id))
	mac.Write([]byte("netfence daemon_id"))
	return hex.EncodeToString(mac.Sum(nil)), nil
}

func mint(path, machine string) (string, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("daemon id: %w", err)
	}
	data, err := json.Marshal(identity{DaemonID: id.String(), Machine: machine})
	if err != nil {
		return "", fmt.Errorf("daemon id: %w", err)
	}
	if err := writeFile(path, append(data, '\n')); err != nil {
		return "", fmt.Errorf("daemon id %s: %w", path, cause(err))
	}
	return id.String(), nil
}

// writeFile replaces path whole: after a crash there is the old content or the new.
func writeFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".daemon_id-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
