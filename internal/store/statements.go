package store

import (
	_ "embed" // apply.sql
	"fmt"
	"strconv"
	"strings"
	"text/template"
)

//go:embed apply.sql
var applySQL string

// applyParts are the parts of the statement that a batch needs; see apply.sql.
type applyParts struct {
	Folded, Stops, Metrics, Prebuilds, Lifecycle bool
}

const applyVariants = 1 << 5

func (p applyParts) index() (i int) {
	for bit, set := range []bool{p.Folded, p.Stops, p.Metrics, p.Prebuilds, p.Lifecycle} {
		if set {
			i |= 1 << bit
		}
	}
	return i
}

func partsOf(index int) applyParts {
	bit := func(i int) bool { return index>>i&1 == 1 }
	return applyParts{Folded: bit(0), Stops: bit(1), Metrics: bit(2), Prebuilds: bit(3), Lifecycle: bit(4)}
}

// statement is one variant of the statement, under the name by which the
// connections have it prepared.
type statement struct{ name, sql string }

type applyStatements [applyVariants]statement

// applyRows is the statement for small batches: a function of the database; see
// the migration that makes it. Its parameters are those that every variant has,
// metrics, and whether there are lifecycle events.
var applyRows = statement{name: "trestle_apply_rows", sql: `
SELECT position, outcome, stored, owner_id, workspace_id, region, starts, stops, revives, keeps_failed, ignores_stopping,
    creation, started, first_activity, built_image
FROM trestle_apply_1(` + parameters(applyParameters+3) + `)`}

func parameters(n int) string {
	var list strings.Builder
	for i := range n {
		if i > 0 {
			list.WriteString(", ")
		}
		list.WriteString("$" + strconv.Itoa(i+1))
	}
	return list.String()
}

// The parameters that every variant has. Those of the parts follow, in the
// order in which the statement names them.
const applyParameters = 29

func newApplyStatements() (*applyStatements, error) {
	next := 0
	text, err := template.New("apply.sql").Funcs(template.FuncMap{
		// arg numbers a parameter; its name is for the reader.
		"arg": func(string) string {
			next++
			return "$" + strconv.Itoa(next)
		},
	}).Parse(applySQL)
	if err != nil {
		return nil, fmt.Errorf("parse the statement of a batch: %w", err)
	}
	var all applyStatements
	for i := range all {
		next = applyParameters
		var sql strings.Builder
		if err := text.Execute(&sql, partsOf(i)); err != nil {
			return nil, fmt.Errorf("compose the statement of a batch: %w", err)
		}
		all[i] = statement{name: "trestle_apply_" + strconv.Itoa(i), sql: sql.String()}
	}
	return &all, nil
}
