/* Runs Lua scripts. What they print goes into a buffer. */

#include "lauxlib.h"
#include "lua.h"
#include "lualib.h"
#include <string.h>

/* What a script has printed. */
struct output {
    char *start;
    size_t len, room;
};

static void put(struct output *out, const char *text, size_t len) {
    if (len > out->room - out->len)
        len = out->room - out->len;
    memcpy(out->start + out->len, text, len);
    out->len += len;
}

/* Prints the arguments with `between` and `after`, as print and io.write do. */
static int put_arguments(lua_State *L, const char *between, const char *after) {
    struct output *out = lua_touserdata(L, lua_upvalueindex(1));
    int count = lua_gettop(L);
    for (int i = 1; i <= count; i++) {
        size_t len;
        const char *text = luaL_tolstring(L, i, &len);
        if (i > 1)
            put(out, between, strlen(between));
        put(out, text, len);
        lua_pop(L, 1);
    }
    put(out, after, strlen(after));
    return 0;
}

static int lua_print(lua_State *L) { return put_arguments(L, "\t", "\n"); }

static int lua_write(lua_State *L) { return put_arguments(L, "", ""); }

/* Runs `source` under pcall; what it printed goes to `out`. Returns its length, or -1 without memory. */
long run_script(const char *source, char *out, long out_len) {
    struct output output = {out, 0, (size_t)out_len};
    lua_State *L = luaL_newstate();
    if (!L)
        return -1;
    luaL_openlibs(L);
    lua_pushlightuserdata(L, &output);
    lua_pushcclosure(L, lua_print, 1);
    lua_setglobal(L, "print");
    lua_getglobal(L, "io");
    lua_pushlightuserdata(L, &output);
    lua_pushcclosure(L, lua_write, 1);
    lua_setfield(L, -2, "write");
    lua_pop(L, 1);
    if (luaL_loadbuffer(L, source, strlen(source), "=script") != LUA_OK
        || lua_pcall(L, 0, 0, 0) != LUA_OK) {
        const char *message = lua_tostring(L, -1);
        put(&output, "error: ", 7);
        if (message)
            put(&output, message, strlen(message));
        put(&output, "\n", 1);
    }
    lua_close(L);
    return (long)output.len;
}
