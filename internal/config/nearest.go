// SPDX-License-Identifier: Apache-2.0

package config

// nearest is the known name that is the fewest edits away from got, or "" when none is near enough to be meant.
func nearest(got string, known []string) string {
	best, bound := "", min(4, len(got))
	for _, name := range known {
		if d := distance(got, name); d < bound {
			best, bound = name, d
		}
	}
	return best
}

// distance counts the single-byte insertions, deletions and substitutions between a and b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
