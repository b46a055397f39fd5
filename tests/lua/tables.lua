-- Tables: both parts, metatables, and collection.
local t = {}
for i = 1, 1000 do t[i] = i * i; t["k" .. i] = i end
local sum, keys = 0, {}
for k, v in pairs(t) do
    if type(k) == "number" then sum = sum + v else keys[#keys + 1] = k end
end
table.sort(keys)
print(#t, sum, #keys, keys[1], keys[#keys])
table.insert(t, 1, "first"); print(t[1], t[2], table.remove(t, 1), #t)
print(table.concat({1, 2.5, "x"}, ","), select("#", table.unpack({1, nil, 3}, 1, 3)))
print(table.concat(table.move({1, 2, 3, 4, 5}, 2, 5, 1), " "))

local Point = {}
Point.__index = Point
Point.__add = function(a, b) return setmetatable({x = a.x + b.x}, Point) end
Point.__eq = function(a, b) return a.x == b.x end
Point.__tostring = function(p) return "<" .. p.x .. ">" end
Point.__call = function(p, n) return p.x * n end
local p = setmetatable({x = 3}, Point) + setmetatable({x = 4}, Point)
print(p, p == setmetatable({x = 7}, Point), p(6))

local weak = setmetatable({}, {__mode = "v"})
local closed
do weak[1] = {}; setmetatable({}, {__gc = function() closed = true end}) end
collectgarbage(); collectgarbage()
print(weak[1], closed, collectgarbage("count") > 10)
