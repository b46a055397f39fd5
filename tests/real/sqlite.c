/* A session with a database in memory, as a script; what it answers goes into a buffer. */

#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

static char answers[1 << 16];
static size_t len;

static int answer(void *nothing, int columns, char **values, char **names) {
    (void)nothing, (void)names;
    for (int i = 0; i < columns; i++)
        len += (size_t)snprintf(answers + len, sizeof answers - len, "%s%s", i ? "|" : "", values[i] ? values[i] : "NULL");
    len += (size_t)snprintf(answers + len, sizeof answers - len, ";");
    return len >= sizeof answers - 1000;
}

static const char *const script[] = {
    "CREATE TABLE person(id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, born REAL, note BLOB)",
    "CREATE TABLE visit(person INTEGER REFERENCES person(id), day TEXT, score INTEGER CHECK (score >= 0))",
    "CREATE INDEX visit_by_day ON visit(day, score)",
    "BEGIN",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
    " INSERT INTO person SELECT i, printf('name-%04d', i * 7919 % 10007), 1900 + i / 7.0, randomblob(0) FROM n",
    "INSERT INTO visit SELECT id, date('2020-01-01', '+' || (id * 37 % 366) || ' days'), id * id % 101 FROM person, (SELECT 1 UNION SELECT 2)",
    "COMMIT",
    "SELECT count(*), sum(score), avg(score), min(day), max(day) FROM visit",
    "SELECT p.name, sum(v.score) AS total FROM person p JOIN visit v ON v.person = p.id GROUP BY p.id ORDER BY total DESC, p.name LIMIT 7",
    "SELECT name, rank() OVER (ORDER BY born % 13 DESC), lag(name) OVER (ORDER BY id) FROM person WHERE id % 97 = 1",
    "UPDATE person SET note = zeroblob(8) WHERE name LIKE '%-00%'",
    "SELECT count(*), length(note), typeof(note) FROM person GROUP BY note IS NULL",
    "INSERT INTO visit VALUES (1, '2020-02-30', -1)",
    "SAVEPOINT a", "DELETE FROM visit WHERE score > 50", "SELECT count(*) FROM visit", "ROLLBACK TO a", "SELECT count(*) FROM visit",
    "SELECT json_extract('{\"a\": [1, 2, {\"b\": 3.5}]}', '$.a[2].b'), upper('straße'), round(2.0 / 3, 6), 7 / 0, 1e308 * 10",
    "CREATE TRIGGER watch AFTER DELETE ON person BEGIN INSERT INTO visit VALUES (old.id, 'gone', 0); END",
    "DELETE FROM person WHERE id BETWEEN 10 AND 19", "SELECT count(*) FROM visit WHERE day = 'gone'",
    "SELECT no_such_column FROM person", "EXPLAIN QUERY PLAN SELECT * FROM visit WHERE day > '2020-06-01' ORDER BY score",
    "PRAGMA integrity_check", "SELECT sqlite_version()",
};

const char *session(void) {
    sqlite3 *database;
    len = 0;
    if (sqlite3_open(":memory:", &database) != SQLITE_OK)
        return "no memory";
    for (size_t i = 0; i < sizeof script / sizeof *script; i++) {
        char *message = NULL;
        if (sqlite3_exec(database, script[i], answer, NULL, &message) != SQLITE_OK)
            len += (size_t)snprintf(answers + len, sizeof answers - len, "error: %s;", message ? message : "?");
        sqlite3_free(message);
    }
    sqlite3_close(database);
    return answers;
}
