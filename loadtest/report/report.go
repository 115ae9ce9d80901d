// Package report shows a recording of a load test: a line while it goes on, then
// a table for whoever waited for it, and one page for whoever is shown it.
//
// All is made from a record.Recording alone. The package owns nothing but the
// files that it is told to write. Whatever a recording calls things is text: it
// neither steers a terminal nor becomes a part of a page.
package report

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/trestle-bridge/trestle/loadtest/record"
)

// Files are what Write has written.
type Files struct {
	// Recording is the JSON form, HTML the page.
	Recording, HTML string
}

// Write writes the recording and its page into a folder, which is made if need
// be, as <name>.json and <name>.html.
func Write(dir, name string, r *record.Recording) (Files, error) {
	files := Files{filepath.Join(dir, name+".json"), filepath.Join(dir, name+".html")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Files{}, fmt.Errorf("make the folder of the report: %w", err)
	}
	if err := record.Write(files.Recording, r); err != nil {
		return Files{}, err
	}
	page, err := os.Create(files.HTML)
	if err != nil {
		return Files{}, fmt.Errorf("write the page: %w", err)
	}
	if err := errors.Join(HTML(page, r), page.Close()); err != nil {
		return Files{}, fmt.Errorf("write %s: %w", files.HTML, err)
	}
	return files, nil
}
