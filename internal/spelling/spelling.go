// SPDX-License-Identifier: Apache-2.0

// Package spelling finds the word that somebody meant.
package spelling

// near is how many edits a slip takes at most, and longest how long a word is
// that anybody mistypes, in bytes.
const (
	near    = 2
	longest = 64
)

// Nearest is the known word that is the fewest edits away from word, the first
// in the alphabet of several; empty when none is near enough to be meant.
func Nearest(word string, known []string) string {
	best, fewest := "", near+1
	for _, k := range known {
		d := distance(word, k)
		if d < fewest && d < len(k) || d == fewest && best != "" && k < best {
			best, fewest = k, d
		}
	}
	return best
}

// distance counts the insertions, deletions and substitutions of bytes, and the
// exchanges of two neighbours, between a and b (optimal string alignment); it is
// large for what is far too long.
func distance(a, b string) int {
	if len(a) > longest || len(b) > longest {
		return longest
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, before
		row[0] = i + 1
		for j := range len(b) {
			substituted := last[j]
			if a[i] != b[j] {
				substituted++
			}
			row[j+1] = min(substituted, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
