package handmade

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFiles(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "notes.txt")
	check(t, "FileExists", FileExists(path), false)
	check(t, "FreePath", FreePath(path), path)
	check(t, "WriteLines", WriteLines(path, []string{"one", "two"}), nil)
	check(t, "AppendLine", AppendLine(path, "three"), nil)
	lines, err := ReadLines(path)
	check(t, "ReadLines", lines, []string{"one", "two", "three"})
	check(t, "ReadLines", err, nil)
	if _, err := ReadLines(folder + "/none"); err == nil {
		t.Error("ReadLines: no error")
	}
	check(t, "FileExists", FileExists(path), true)
	check(t, "FreePath", FreePath(path), filepath.Join(folder, "notes-1.txt"))
	size, err := CopyFile(path, filepath.Join(folder, "copy.md"))
	check(t, "CopyFile", []any{size, err}, []any{int64(14), nil})
	if err := os.WriteFile(path, []byte("abc"), 0o644); err != nil {
		t.Fatal(err)
	}
	sum, err := FileSHA256(path)
	want := "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	check(t, "FileSHA256", []any{sum, err}, []any{want, nil})
	found, err := FindFiles(folder, ".md")
	check(t, "FindFiles", found, []string{filepath.Join(folder, "copy.md")})
	check(t, "FindFiles", err, nil)
}

func TestJSONAndCSV(t *testing.T) {
	path := filepath.Join(t.TempDir(), "city.json")
	type city struct{ Name string }
	check(t, "SaveJSON", SaveJSON(path, city{"Rome"}), nil)
	var loaded city
	check(t, "LoadJSON", LoadJSON(path, &loaded), nil)
	check(t, "LoadJSON", loaded, city{"Rome"})
	var other struct{ Age int }
	if err := LoadJSON(path, &other); err == nil {
		t.Error("LoadJSON: no error")
	}
	rows, err := ReadCSV("id,name\n1,\"Bo, jr.\"\n")
	check(t, "ReadCSV", rows, []map[string]string{{"id": "1", "name": "Bo, jr."}})
	check(t, "ReadCSV", err, nil)
	line, err := CSVLine("a", "b,c", "3")
	check(t, "CSVLine", []any{line, err}, []any{`a,"b,c",3`, nil})
}
