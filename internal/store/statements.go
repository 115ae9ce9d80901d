package store

import (
	_ "embed" // apply.sql
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

//go:embed apply.sql
var applySQL string

// applyParts are the parts of the statement that a batch needs; see apply.sql.
type applyParts struct {
	Folded, Stops, Prebuilds, Lifecycle bool
}

// applyVariants are the combinations of parts that there is a statement of, each
// with more than the one before it. A part that a batch does not need costs next to
// nothing; a variant costs a plan on each connection, some milliseconds of processor
// time when it is opened and whenever a table has been analyzed.
var applyVariants = [...]applyParts{
	{},
	{Stops: true},
	{Stops: true, Folded: true},
	{Stops: true, Folded: true, Prebuilds: true},
}

// variant is the place of the first variant that has what is needed. Lifecycle is not
// a need of a batch: a store has it in all variants, or in none.
func (p applyParts) variant() int {
	return slices.IndexFunc(applyVariants[:], func(v applyParts) bool {
		return (v.Stops || !p.Stops) && (v.Folded || !p.Folded) && (v.Prebuilds || !p.Prebuilds)
	})
}

// statement is one variant of the statement, under the name by which the
// connections have it prepared.
type statement struct {
	name, sql string
	parts     applyParts
}

type applyStatements [len(applyVariants)]statement

// applyRows is the statement for small batches: a function of the database; see
// the migration that makes it. Its parameters are those that every variant has, and
// whether there are lifecycle events.
var applyRows = statement{name: "trestle_apply_rows", sql: `
SELECT position, outcome, stored, owner_id, workspace_id, region, starts, stops, revives, keeps_failed, ignores_stopping,
    creation, started, first_activity, built_image
FROM trestle_apply_1(` + parameters(applyParameters+1) + `)`}

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
const applyParameters = 31

func newApplyStatements(lifecycle bool) (*applyStatements, error) {
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
	for i, parts := range applyVariants {
		parts.Lifecycle = lifecycle
		next = applyParameters
		var sql strings.Builder
		if err := text.Execute(&sql, parts); err != nil {
			return nil, fmt.Errorf("compose the statement of a batch: %w", err)
		}
		all[i] = statement{name: "trestle_apply_" + strconv.Itoa(i), sql: sql.String(), parts: parts}
	}
	return &all, nil
}
