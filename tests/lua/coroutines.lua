-- Coroutines: generators, errors inside, closing.
local function range(n)
    return coroutine.wrap(function() for i = 1, n do coroutine.yield(i) end end)
end
local sum = 0
for i in range(10000) do sum = sum + i end
print(sum)
local co = coroutine.create(function(a, b)
    print("start", a, b)
    local c = coroutine.yield(a + b)
    print("resumed", c)
    local ok, message = pcall(function() coroutine.yield("inside pcall"); error("oops", 0) end)
    print(ok, message)
    return "done"
end)
print(coroutine.resume(co, 1, 2))
print(coroutine.resume(co, "x"))
print(coroutine.status(co), coroutine.resume(co))
print(coroutine.status(co), coroutine.resume(co))
print(coroutine.resume(coroutine.create(function() error("dies", 0) end)))
print(coroutine.isyieldable(), coroutine.close(coroutine.create(print)))
-- A pipeline of twenty of them.
local source = range(3)
for _ = 1, 20 do
    local previous = source
    source = coroutine.wrap(function() for v in previous do coroutine.yield(v + 1) end end)
end
for v in source do io.write(v, " ") end
print()
