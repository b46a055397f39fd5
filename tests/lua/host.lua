-- What Lua asks of the host: files, time, the environment.
local file = assert(io.tmpfile())
print(file:write("one\n", 2, "\nthree") == file, file:seek("set"))
for line in file:lines() do io.write("[", line, "]") end
print(file:seek("end"), file:close(), io.type(file))
print(io.open("/nonexistent/file"))
print(os.date("!%Y-%m-%d %H:%M:%S", 86400 * 365), os.time({year = 2001, month = 9, day = 9, hour = 12}) > 0)
print(os.getenv("NO_SUCH_VARIABLE"), os.setlocale("C"), os.clock() >= 0)
print(pcall(require, "no_such_module") == false, package.config:sub(1, 1))
local pipe = assert(io.popen("echo from a shell"))
print(pipe:read("a"), pipe:close())
