package record

import "fmt"

// MaxFindings is how many findings a verdict keeps; the counts count all.
const MaxFindings = 200

// Verdict is what the check of a run found.
type Verdict struct {
	// Held says that all of Zeros are 0, every expectation was met and all
	// settled.
	Held bool `json:"held"`
	// Instances were checked, Exact of them update by update; the others as far
	// as what failed on the way allows to ask for.
	Instances int   `json:"instances"`
	Exact     int   `json:"exact"`
	Zeros     Zeros `json:"zeros"`
	// Expectations are what else the scenario asks for.
	Expectations []Expectation `json:"expectations"`
	// Information counts what may happen, and is told.
	Information []Count `json:"information"`
	// Unsettled says what was still missing when waiting for it ended; empty if
	// nothing was.
	Unsettled string `json:"unsettled"`
	// Findings are the first of what is wrong, in words.
	Findings []string `json:"findings"`
}

// Zeros are the counts that must be 0.
type Zeros struct {
	// Lost: rows that have not come to the last update, or are gone.
	Lost int64 `json:"lost"`
	// Late: changes whose publish had not come when the wait for it ended.
	Late int64 `json:"late"`
	// Doubled: publishes more than there were changes, where no failure excuses
	// them.
	Doubled int64 `json:"doubled"`
	// Misordered: publishes, or states of a row, that tell an older state after
	// a newer one.
	Misordered int64 `json:"misordered"`
	// Regressed: rows that have gone back, or are ahead of all updates.
	Regressed int64 `json:"regressed"`
	// Wrong: values that are not what the updates make.
	Wrong int64 `json:"wrong"`
	// Unpublished: changes without a publish after them.
	Unpublished int64 `json:"unpublished"`
	// Early: publishes before their commit.
	Early int64 `json:"early"`
	// Malformed: publishes with other fields than the contract's.
	Malformed int64 `json:"malformed"`
}

// Count is a number with its name and what it means.
type Count struct {
	Name  string `json:"name"`
	Count int64  `json:"count"`
	What  string `json:"what"`
}

// List has all of them in the order in which they are shown.
func (z Zeros) List() []Count {
	return []Count{
		{"lost", z.Lost, "rows that did not come to their last update"},
		{"late", z.Late, "changes still without a publish when the wait for it ended"},
		{"doubled", z.Doubled, "publishes more than there were changes, without a failure that excuses them"},
		{"misordered", z.Misordered, "an older state told after a newer one"},
		{"regressed", z.Regressed, "rows that went back, or are ahead of all updates"},
		{"wrong", z.Wrong, "values that are not what the updates make"},
		{"unpublished", z.Unpublished, "changes without a publish after them"},
		{"early", z.Early, "publishes before their commit"},
		{"malformed", z.Malformed, "publishes with other fields than the contract's"},
	}
}

// Sum is 0 if all are.
func (z Zeros) Sum() (sum int64) {
	for _, c := range z.List() {
		sum += c.Count
	}
	return sum
}

// Expectation is something that a scenario asks for beside the zeros.
type Expectation struct {
	// What is the thing, such as "longest planned move"; Want and Got are in
	// words, with units.
	What string `json:"what"`
	Want string `json:"want"`
	Got  string `json:"got"`
	Held bool   `json:"held"`
}

// Judge sets Held from all the rest.
func (v *Verdict) Judge() {
	v.Held = v.Zeros.Sum() == 0 && v.Unsettled == ""
	for _, e := range v.Expectations {
		v.Held = v.Held && e.Held
	}
}

// AddFinding keeps a finding as long as there are not too many.
func (v *Verdict) AddFinding(format string, args ...any) {
	if len(v.Findings) < MaxFindings {
		v.Findings = append(v.Findings, fmt.Sprintf(format, args...))
	}
}
