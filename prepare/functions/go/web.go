package handmade

import (
	"encoding/json"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// QueryValue returns the first value of a name in an address's query, or fallback.
func QueryValue(address, name, fallback string) string {
	parsed, err := url.Parse(address)
	if err != nil || !parsed.Query().Has(name) {
		return fallback
	}
	return parsed.Query().Get(name)
}

// WithQuery returns the address with this parameter in its query, in place of an old one.
func WithQuery(address, name, value string) (string, error) {
	parsed, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	query := parsed.Query()
	query.Set(name, value)
	parsed.RawQuery = query.Encode()
	return parsed.String(), nil
}

// Domain returns the host of an address in lower case, without www. in front.
func Domain(address string) string {
	parsed, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(strings.ToLower(parsed.Hostname()), "www.")
}

// JoinURL joins an address and the parts of a path with exactly one slash between them.
func JoinURL(base string, parts ...string) string {
	return strings.TrimRight(base, "/") + path.Join("/", path.Join(parts...))
}

// IsWebAddress reports whether a text is an http or https address with a host.
func IsWebAddress(text string) bool {
	parsed, err := url.Parse(text)
	if err != nil {
		return false
	}
	return (parsed.Scheme == "http" || parsed.Scheme == "https") && parsed.Host != ""
}

// LooksLikeEmail reports whether a text has the form of an e-mail address.
func LooksLikeEmail(text string) bool {
	return regexp.MustCompile(`^[^@\s]+@[^@\s.]+(\.[^@\s.]+)+$`).MatchString(text)
}

// IsPrivateIP reports whether a text is an IP address of a private or local network.
func IsPrivateIP(text string) bool {
	ip := net.ParseIP(text)
	return ip != nil && (ip.IsPrivate() || ip.IsLoopback())
}

// ValidChecksum checks the last digit of a card number by Luhn's rule.
func ValidChecksum(number string) bool {
	sum, count := 0, 0
	for i := len(number) - 1; i >= 0; i-- {
		if number[i] < '0' || number[i] > '9' {
			continue
		}
		digit := int(number[i] - '0')
		if count%2 == 1 {
			digit *= 2
		}
		if digit > 9 {
			digit -= 9
		}
		sum += digit
		count++
	}
	return count > 0 && sum%10 == 0
}

// PasswordProblems returns what is wrong with a new password.
func PasswordProblems(password string) []string {
	var problems []string
	if len(password) < 8 {
		problems = append(problems, "too short")
	}
	if strings.IndexFunc(password, unicode.IsDigit) < 0 {
		problems = append(problems, "no digit")
	}
	return problems
}

// CompareVersions returns -1, 0 or 1 as version a is older than, equal to or newer than b.
func CompareVersions(a, b string) int {
	left, right := strings.Split(a, "."), strings.Split(b, ".")
	for i := 0; i < len(left) || i < len(right); i++ {
		var x, y int
		if i < len(left) {
			x, _ = strconv.Atoi(left[i])
		}
		if i < len(right) {
			y, _ = strconv.Atoi(right[i])
		}
		if x < y {
			return -1
		}
		if x > y {
			return 1
		}
	}
	return 0
}

// StripTags returns the text of a piece of HTML.
func StripTags(page string) string {
	text := regexp.MustCompile(`<[^>]*>`).ReplaceAllString(page, " ")
	return strings.Join(strings.Fields(html.UnescapeString(text)), " ")
}

// ParseHeaders reads lines such as "Name: value" into a map with names in lower case.
func ParseHeaders(text string) map[string]string {
	headers := make(map[string]string)
	for _, line := range strings.Split(text, "\n") {
		name, value, found := strings.Cut(line, ":")
		if found {
			headers[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
		}
	}
	return headers
}

// RespondJSON answers a request with a status and a value as JSON.
func RespondJSON(w http.ResponseWriter, status int, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(data)
}

// RequireMethod lets a handler see only requests of one method and refuses the others.
func RequireMethod(method string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method {
			w.Header().Set("Allow", method)
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// PageNumber returns the page that a request asks for, counted from 1.
func PageNumber(r *http.Request) (int, error) {
	text := r.URL.Query().Get("page")
	if text == "" {
		return 1, nil
	}
	page, err := strconv.Atoi(text)
	if err != nil || page < 1 {
		return 0, fmt.Errorf("page must be a number from 1 up, not %q", text)
	}
	return page, nil
}
