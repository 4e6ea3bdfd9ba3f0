package handmade

import (
	"bufio"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ReadLines returns the lines of a text file.
func ReadLines(path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var lines []string
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		lines = append(lines, scanner.Text())
	}
	return lines, scanner.Err()
}

// WriteLines writes each line, ended by a newline, to a file.
func WriteLines(path string, lines []string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	writer := bufio.NewWriter(file)
	for _, line := range lines {
		fmt.Fprintln(writer, line)
	}
	if err := writer.Flush(); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

// AppendLine appends a line to a file, which is made if it does not exist.
func AppendLine(path, line string) error {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := file.WriteString(line + "\n"); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

// FileExists reports whether there is a file or folder at a path.
func FileExists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// CopyFile copies a file's content and returns how many bytes it has.
func CopyFile(source, target string) (int64, error) {
	in, err := os.Open(source)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := os.Create(target)
	if err != nil {
		return 0, err
	}
	size, err := io.Copy(out, in)
	if closing := out.Close(); err == nil {
		err = closing
	}
	return size, err
}

// FileSHA256 returns the SHA-256 of a file in hex, without reading all of it into memory.
func FileSHA256(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	digest := sha256.New()
	if _, err := io.Copy(digest, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(digest.Sum(nil)), nil
}

// FindFiles returns the files below a folder whose names end with suffix, in lexical order.
func FindFiles(folder, suffix string) ([]string, error) {
	var found []string
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !entry.IsDir() && strings.HasSuffix(path, suffix) {
			found = append(found, path)
		}
		return nil
	})
	return found, err
}

// FreePath returns the path, or one with a number before its extension if something is there.
func FreePath(path string) string {
	extension := filepath.Ext(path)
	stem := strings.TrimSuffix(path, extension)
	candidate := path
	for number := 1; ; number++ {
		if _, err := os.Stat(candidate); err != nil {
			return candidate
		}
		candidate = fmt.Sprintf("%s-%d%s", stem, number, extension)
	}
}

// SaveJSON writes a value to a JSON file that people can read.
func SaveJSON(path string, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// LoadJSON reads a JSON file into the value that target points to; unknown fields are errors.
func LoadJSON(path string, target any) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	decoder := json.NewDecoder(file)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(target); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// ReadCSV reads a CSV text with a header into one map for each row.
func ReadCSV(text string) ([]map[string]string, error) {
	records, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil || len(records) == 0 {
		return nil, err
	}
	var rows []map[string]string
	for _, record := range records[1:] {
		row := make(map[string]string)
		for i, name := range records[0] {
			row[name] = record[i]
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// CSVLine returns the values as a line of CSV, quoted where that is needed.
func CSVLine(values ...string) (string, error) {
	var b strings.Builder
	writer := csv.NewWriter(&b)
	if err := writer.Write(values); err != nil {
		return "", err
	}
	writer.Flush()
	return strings.TrimSuffix(b.String(), "\n"), writer.Error()
}
