// SPDX-License-Identifier: Apache-2.0

package datapath

import "golang.org/x/sys/unix"

var lastingCalls = []uint32{
	unix.SYS_MKDIR, unix.SYS_MKDIRAT, unix.SYS_UNLINK, unix.SYS_UNLINKAT, unix.SYS_RMDIR, unix.SYS_RENAME, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2,
}
