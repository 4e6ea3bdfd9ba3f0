package handmade

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestAddresses(t *testing.T) {
	check(t, "QueryValue", QueryValue("https://a.example/?q=a+b", "q", ""), "a b")
	check(t, "QueryValue", QueryValue("https://a.example/", "q", "all"), "all")
	address, err := WithQuery("https://a.example/list?page=1&sort=name", "page", "2")
	check(t, "WithQuery", []any{address, err}, []any{"https://a.example/list?page=2&sort=name", nil})
	check(t, "Domain", Domain("https://www.Go.dev:443/doc"), "go.dev")
	check(t, "JoinURL", JoinURL("https://a.example/", "/users/", "7"), "https://a.example/users/7")
	check(t, "IsWebAddress", IsWebAddress("https://go.dev/doc"), true)
	check(t, "IsWebAddress", IsWebAddress("go.dev/doc"), false)
	check(t, "LooksLikeEmail", LooksLikeEmail("ada@mail.example"), true)
	check(t, "LooksLikeEmail", LooksLikeEmail("ada@mail"), false)
	check(t, "IsPrivateIP", IsPrivateIP("192.168.1.7"), true)
	check(t, "IsPrivateIP", IsPrivateIP("8.8.8.8"), false)
	check(t, "StripTags", StripTags("<p>Fish &amp; <b>chips</b></p>"), "Fish & chips")
	headers := ParseHeaders("Host: a.example\r\nAccept: text/html\r\n\r\n")
	check(t, "ParseHeaders", headers, map[string]string{"host": "a.example", "accept": "text/html"})
}

func TestChecks(t *testing.T) {
	check(t, "ValidChecksum", ValidChecksum("4012 8888 8888 1881"), true)
	check(t, "ValidChecksum", ValidChecksum("4012 8888 8888 1882"), false)
	check(t, "PasswordProblems", PasswordProblems("abc"), []string{"too short", "no digit"})
	check(t, "PasswordProblems", len(PasswordProblems("abcdefg8")), 0)
	check(t, "CompareVersions", CompareVersions("1.9", "1.10.2"), -1)
	check(t, "CompareVersions", CompareVersions("2.0", "2"), 0)
	check(t, "CompareVersions", CompareVersions("1.2.1", "1.2"), 1)
}

func TestRequests(t *testing.T) {
	answer := httptest.NewRecorder()
	RespondJSON(answer, http.StatusCreated, map[string]int{"id": 7})
	check(t, "RespondJSON", []any{answer.Code, answer.Body.String()}, []any{201, `{"id":7}`})
	answer = httptest.NewRecorder()
	RespondJSON(answer, http.StatusOK, make(chan int))
	check(t, "RespondJSON", answer.Code, 500)
	handler := RequireMethod("GET", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	for method, want := range map[string]int{"GET": 200, "POST": 405} {
		answer = httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(method, "/", nil))
		check(t, "RequireMethod", answer.Code, want)
	}
	for query, want := range map[string]int{"": 1, "?page=3": 3, "?page=0": 0, "?page=x": 0} {
		page, err := PageNumber(httptest.NewRequest("GET", "/list"+query, nil))
		check(t, "PageNumber", []any{page, err == nil}, []any{want, want > 0})
	}
}
