-- Errors: longjmp across published frames.
print(pcall(error, "plain"))
print(select(2, pcall(error, {code = 7})).code)
print(pcall(function() local t = nil; return t.x end))
print(pcall(function() return 1 + {} end))
print(pcall(string.rep))
print(pcall(string.rep, "x", -1))
print(xpcall(function() error("deep", 2) end, function(m) return "handled: " .. m end))
print(select(2, pcall(function() local function f() return f() + 1 end; return f() end)):match("stack overflow"))
print(load("x ="))
print(load("return 1 +* 2", "=chunk"))
local depth = 0
local function nest(n)
    depth = depth + 1
    if n == 0 then error("bottom") end
    local ok, message = pcall(nest, n - 1)
    error(message, 0)
end
local _, message = pcall(nest, 100)
print(message, depth)
do
    local closed <close> = setmetatable({}, {__close = function() print("closed") end})
end
print(pcall(function()
    local c <close> = setmetatable({}, {__close = function(_, e) print("closing", e) end})
    error("inside", 0)
end))
print(debug.traceback("trace", 1):match("^trace\nstack traceback:"))
error("at the end of the script")
