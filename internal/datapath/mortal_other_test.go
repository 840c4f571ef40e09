// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package datapath

import "golang.org/x/sys/unix"

var lastingCalls = []uint32{unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2}
