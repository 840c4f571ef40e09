// SPDX-License-Identifier: Apache-2.0

// Package imports holds nothing but a test: which package may import which of ours.
package imports
